"""What a Python without hfvlm makes of a saved folder of each kind; run as a script, in a process of its own.

    clean_heads.py WORK

Reads WORK/heads.json: {folder: Auto classes to load it with}, and WORK/batches.pt: {folder: {Auto class: inputs}};
writes what it saw to WORK/seen.pt, and saves each model again to WORK/again.
"""

import json
import sys
from pathlib import Path

import clean  # noqa: F401  (blocks hfvlm)
import torch
import transformers
from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import ModelOutput


def plain(value):
    """Outputs as dicts of tensors, for a file that holds nothing else."""
    if isinstance(value, ModelOutput):
        return {name: plain(part) for name, part in value.items()}
    return value


def load(folder: Path, auto: str):
    """A model and what loading found: by an Auto class or, if transformers lacks it, the class in `auto_map`."""
    options = {"output_loading_info": True}
    if hasattr(transformers, auto):
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **options)
    reference = json.loads((folder / "config.json").read_text())["auto_map"][auto]
    return get_class_from_dynamic_module(reference, folder).from_pretrained(folder, **options)


def code_of_the_card(folder: Path) -> str:
    """The second example of the model card, for where hfvlm is not installed; of this folder."""
    text = (folder / "README.md").read_text()
    return text.split("```python\n")[2].split("```")[0].replace("path/to/this/folder", str(folder))


def main(work: Path) -> None:
    batches = torch.load(work / "batches.pt", weights_only=True)
    seen: dict = {"heads": {}, "processors": {}, "cards": {}}
    for name, autos in json.loads((work / "heads.json").read_text()).items():
        folder = work / name
        for auto in autos:
            model, info = load(folder, auto)
            record = {"class": type(model).__name__, "module": type(model).__module__}
            record.update({kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys")})
            if not info["missing_keys"]:  # what is missing is drawn at random
                with torch.no_grad():
                    record["outputs"] = plain(model.eval()(**batches[name][auto]))
            seen["heads"][f"{name} {auto}"] = record
            if auto == autos[0]:
                model.save_pretrained(work / "again" / name)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        seen["processors"][name] = f"{type(processor).__module__}:{type(processor).__name__}"
        scope: dict = {}
        exec(compile(code_of_the_card(folder), "README.md", "exec"), scope)
        part = scope["model"] if "model" in scope else scope["pipe"].model
        seen["cards"][name] = type(part).__name__
    torch.save(seen, work / "seen.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
