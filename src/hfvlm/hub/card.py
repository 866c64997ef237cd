"""The model card of a saved model: what it is, how to use it with hfvlm and without, and what is not known of it."""

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCardData

from hfvlm.registry import Architecture
from hfvlm.saving import MANIFEST, UNNAMED
from hfvlm.version import __version__


_TEXT = """---
{data}
---

# {title}

{about} Saved by hfvlm {version}. What it was trained on, how well it does and what it should not be used for is for
whoever trained it to say here.

## Use

With hfvlm installed, no code of this repository runs:

```python
{installed}
```

With transformers alone, the Python files of this repository run on your machine; `{manifest}` lists them with
their hashes. Read them, and pin the revision that you read:

```python
{remote}
```
"""

_PIPELINE = """from {package} import pipeline

pipe = pipeline("{task}", model="{name}"{options})
{call}"""

#: how a pipeline is used; a model whose task is not here is shown by its class
_CALLS = {
    "image-to-text": 'print(pipe("photo.jpg"))',
    "image-text-retrieval": 'pipe.index(images="photos")\nprint(pipe("a dog on the grass"))',
}

_CLASSES = """{imports}

model = {model}.from_pretrained("{name}"{options})
processor = AutoProcessor.from_pretrained("{name}"{options})"""

# where transformers has no Auto class for the head
_BY_REFERENCE = """from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

cls = get_class_from_dynamic_module("{reference}", "{name}", code_revision="<commit>")
model = cls.from_pretrained("{name}", revision="<commit>")
processor = AutoProcessor.from_pretrained("{name}"{options})"""

#: Auto class -> the Hub's name of what its models do; a pipeline of that name goes before
_TAGS = {
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForImageEncoding": "image-feature-extraction",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForTextEncoding": "feature-extraction",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}

_HUB_TASKS = {"image-to-text", "visual-question-answering"}

_REMOTE_OPTIONS = ', trust_remote_code=True, revision="<commit>"'


def write_card(
    model: Any, row: Architecture, references: dict[str, str], save_directory: Path, license: str | None = None
) -> None:
    """Writes README.md for a model, unless the folder has one.

    Args:
        model: what was saved.
        row: its architecture.
        references: Auto class -> "module.Class" in the folder, of every head.
        license: identifier as the Hub knows it, e.g. "apache-2.0".
    """
    path = save_directory / "README.md"
    if path.exists():
        return
    own = f"{type(model).__module__}:{type(model).__qualname__}"
    autos = [auto for auto, head in row.heads.items() if head == own] or ["AutoModel"]
    tasks = [task for task, (_, head) in row.pipelines.items() if head in autos]
    task = next((task for task in tasks if task in _CALLS), None)
    tags = [*(task for task in tasks if task in _HUB_TASKS), *(_TAGS[auto] for auto in autos if auto in _TAGS)]
    data = ModelCardData(
        library_name="transformers", license=license, pipeline_tag=next(iter(tags), None), tags=["hfvlm", row.name]
    )
    if task:
        use = {"task": task, "name": UNNAMED, "call": _CALLS[task]}
        installed = _PIPELINE.format(package="hfvlm", options="", **use)
        remote = _PIPELINE.format(package="transformers", options=_REMOTE_OPTIONS, **use)
    else:
        installed, remote = _by_class(autos[0], references[autos[0]])
    about = f"`{type(model).__name__}`, {model.num_parameters() / 1e6:,.1f} M parameters."
    text = _TEXT.format(
        data=data.to_yaml(),
        title=row.title,
        about=about,
        version=__version__,
        installed=installed,
        manifest=MANIFEST,
        remote=remote,
    )
    path.write_text(text, encoding="utf-8")


def _by_class(auto: str, reference: str) -> tuple[str, str]:
    """How to load a head and its processor, with hfvlm installed and without."""
    if hasattr(transformers, auto):
        imports = f"from transformers import AutoProcessor, {auto}"
        remote = _CLASSES.format(imports=imports, model=auto, name=UNNAMED, options=_REMOTE_OPTIONS)
        imports = f"import hfvlm\n{imports}"
    else:
        imports = f"from hfvlm import {auto}\nfrom transformers import AutoProcessor"
        remote = _BY_REFERENCE.format(reference=reference, name=UNNAMED, options=_REMOTE_OPTIONS)
    return _CLASSES.format(imports=imports, model=auto, name=UNNAMED, options=""), remote
