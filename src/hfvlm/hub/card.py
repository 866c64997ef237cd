"""The model card of a saved model: what it is, how to use it with hfvlm and without, and what is not known of it."""

from pathlib import Path
from typing import Any

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
print(pipe("photo.jpg"))"""

_CLASSES = """{imports}from transformers import AutoProcessor, {auto}

model = {auto}.from_pretrained("{name}"{options})
processor = AutoProcessor.from_pretrained("{name}"{options})"""

_REMOTE_OPTIONS = ', trust_remote_code=True, revision="<commit>"'


def write_card(model: Any, row: Architecture, save_directory: Path, license: str | None = None) -> None:
    """Writes README.md for a model, unless the folder has one.

    Args:
        model: what was saved.
        row: its architecture.
        license: identifier as the Hub knows it, e.g. "apache-2.0".
    """
    path = save_directory / "README.md"
    if path.exists():
        return
    own = f"{type(model).__module__}:{type(model).__qualname__}"
    auto = next((auto for auto, head in row.heads.items() if head == own), "AutoModel")
    task = next((task for task, (_, head) in row.pipelines.items() if head == auto), None)
    tag = task or ("image-text-to-text" if auto == "AutoModelForImageTextToText" else None)
    data = ModelCardData(library_name="transformers", license=license, pipeline_tag=tag, tags=["hfvlm", row.name])
    if task:
        installed = _PIPELINE.format(package="hfvlm", task=task, name=UNNAMED, options="")
        remote = _PIPELINE.format(package="transformers", task=task, name=UNNAMED, options=_REMOTE_OPTIONS)
    else:
        installed = _CLASSES.format(imports="import hfvlm\n", auto=auto, name=UNNAMED, options="")
        remote = _CLASSES.format(imports="", auto=auto, name=UNNAMED, options=_REMOTE_OPTIONS)
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
