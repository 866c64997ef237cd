"""What a Python without hfvlm makes of a saved folder; run as a script, in a process of its own.

    clean.py FOLDER WORK PHOTO

Writes what it saw to WORK/seen.pt, for the test to compare with what hfvlm itself gives.
"""

import importlib.abc
import json
import logging
import shutil
import sys
from pathlib import Path


class Absent(importlib.abc.MetaPathFinder):
    """hfvlm, as if it were not installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "hfvlm":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


sys.meta_path.insert(0, Absent())

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)


class Warnings(logging.Handler):
    """Keeps what loggers warn of, while it is entered."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.loggers = [logging.getLogger(name) for name in ("transformers", "transformers_modules")]

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> "Warnings":
        for logger in self.loggers:
            logger.addHandler(self)
        return self

    def __exit__(self, *error) -> None:
        for logger in self.loggers:
            logger.removeHandler(self)


def look(folder: Path, photo: Path) -> dict:
    """Every way into the folder, and what comes out."""
    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    inputs = processor(images=Image.open(photo), text="a dog")
    model = AutoModelForImageTextToText.from_pretrained(folder, **trust).eval()
    features = AutoModel.from_pretrained(folder, **trust).eval()
    pipe = pipeline("image-to-text", model=str(folder), device="cpu", **trust)
    with torch.no_grad():
        seen = {
            "modules": [type(part).__module__ for part in (config, processor, model, features, pipe)],
            "inputs": dict(inputs),
            "logits": model(**inputs).logits,
            "features": features(inputs["pixel_values"]).last_hidden_state,
            "ids": model.generate(**inputs, num_beams=2, max_new_tokens=6),
            "caption": pipe(str(photo), max_new_tokens=6)[0]["generated_text"],
        }
    return seen


def save_again(folder: Path, to: Path) -> None:
    """Through the Auto classes, as a user without hfvlm would."""
    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).save_pretrained(to)
    AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(to)


def main(folder: Path, work: Path, photo: Path) -> None:
    seen: dict = {}
    try:
        import hfvlm  # noqa: F401
    except ModuleNotFoundError:
        seen["blocked"] = True
    seen["first"] = look(folder, photo)

    save_again(folder, work / "again")
    save_again(work / "again", work / "thrice")
    seen["again"] = look(work / "thrice", photo)

    # transformers.pipeline puts classes into its model's config
    pipeline("image-to-text", model=str(folder), trust_remote_code=True).save_pretrained(work / "piped")
    seen["piped"] = json.loads((work / "piped" / "config.json").read_text())["custom_pipelines"]

    # a head that is not the one the folder was saved with
    AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(work / "features")

    # only processor files
    AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(work / "processor")
    seen["processor"] = type(AutoProcessor.from_pretrained(work / "processor", trust_remote_code=True)).__module__
    try:
        AutoProcessor.from_pretrained(work / "processor", trust_remote_code=False)
    except ValueError as error:
        seen["untrusted"] = str(error)

    # the place it was loaded from is gone, or holds something else by now
    for change in ("gone", "changed", "edited", "unlisted", "listless"):
        source = shutil.copytree(folder, work / f"{change}_source")
        model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True)
        if change == "gone":
            shutil.rmtree(source)
        elif change == "changed":
            (source / "outputs.py").write_text("# another version\n")
        elif change in ("unlisted", "listless"):  # a manifest of another form
            (source / "code_manifest.json").write_text("{}" if change == "unlisted" else "[]")
        else:  # a module that the model does not run
            with (source / "pipelines_image_to_text.py").open("a") as module:
                module.write("# by another hand\n")
        with Warnings() as warnings:
            model.save_pretrained(work / change)
        seen[change] = warnings.messages
    reloaded = AutoModelForImageTextToText.from_pretrained(work / "gone", trust_remote_code=True)
    seen["reloaded"] = type(reloaded).__name__
    torch.save(seen, work / "seen.pt")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
