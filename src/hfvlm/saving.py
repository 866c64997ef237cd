"""Saving a model or a processor together with the code that loads it, and pushing all of it in one commit.

This module is part of the code that is saved: a folder that was loaded without hfvlm can be saved and pushed again.
"""

import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import ProcessorMixin
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, cached_file, logging


logger = logging.get_logger(__name__)

#: lists the code of a saved folder: {"hfvlm": version, "files": {name: sha256}}
MANIFEST = "code_manifest.json"

#: what a model card calls the model until it is pushed under a name
UNNAMED = "path/to/this/folder"


class SavesCode:
    """Goes before `PreTrainedModel` or `ProcessorMixin`: folders that load where hfvlm is not installed."""

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """Saves as transformers does, and adds the code that loads the folder where hfvlm is not installed.

        Args:
            save_directory: made if need be; other files in it stay.
            push_to_hub: also pushes what was saved, in one commit, with the arguments of the method `push_to_hub`
                (`repo_id`: by default the folder's name).
            kwargs: what `save_pretrained` of transformers takes.

        Raises:
            NotADirectoryError: `save_directory` is a file.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"save_directory must be a folder, {os.fspath(save_directory)!r} is a file")
        folder = Path(save_directory)
        push = {}
        if kwargs.pop("push_to_hub", False):
            push = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
            push.setdefault("repo_id", folder.resolve().name)
        before = _times(folder) if push else {}
        _name_pipeline_classes(getattr(self, "config", None))
        saved = super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self._save_code(folder)
            if push:
                files = [name for name, time in _times(folder).items() if before.get(name) != time]
                _commit(self, folder, files, **push)
        return saved

    def _save_code(self, folder: Path) -> None:
        save_code(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor: Any = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | str | None = None,
    ) -> CommitInfo:
        """Pushes weights, config, code and model card in one commit; makes the repository if it is not there.

        A model card that the repository has already is kept.

        Args:
            repo_id: "name" or "owner/name".
            processor: of this model: goes into the same commit.
            private: whether a new repository is private.
            revision: branch to commit to, made if need be.
            create_pr: open a pull request instead of committing to the branch.
            tags: for the model card.

        Raises:
            TypeError: `processor` is not one.
            ConnectionError: the Hub cannot be reached.
            HfHubHTTPError: the Hub refuses; the message says what it answered.
        """
        if processor is not None and not isinstance(processor, ProcessorMixin):
            raise TypeError(f"processor must be a loaded processor, got {type(processor).__name__}")
        with tempfile.TemporaryDirectory() as folder:  # a save that fails has touched nothing on the Hub
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if processor is not None:
                processor.save_pretrained(folder)
            return _commit(
                self,
                Path(folder),
                list(_times(Path(folder))),
                repo_id,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags,
            )


# the root of the errors of the HTTP client inside huggingface_hub, which has changed its client before
_HttpError = HfHubHTTPError.__bases__[0]

_HUB_ARGUMENTS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)


def save_code(saved: Any, save_directory: str | os.PathLike) -> None:
    """Adds the remote code of a model or processor to the folder that it was just saved in.

    Inside hfvlm the code is cut from the installed package. A class that was itself loaded from a folder has the
    modules it imports saved by transformers; the others (pipelines, other heads) are copied from where it came from.
    Without that place config.json is saved without what needs them, with a warning.
    """
    module, folder = type(saved).__module__, Path(save_directory)
    if module.startswith("hfvlm."):
        # by name: transformers takes an import statement in remote code for something that must be installed
        importlib.import_module("hfvlm.hub.bundle").write_bundle(saved, folder)
        return
    reason = ""
    if module.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
        try:
            _copy_code(saved, folder)
        except (OSError, ValueError) as error:
            reason = f" ({error})"
    dropped = _drop_dangling(folder / "config.json")
    if dropped:
        logger.warning(
            f"{folder / 'config.json'} is saved without {', '.join(dropped)}, whose code is not at hand{reason}. Load "
            "the model from a folder that has it, or with hfvlm installed, to save it whole."
        )


def _copy_code(saved: Any, folder: Path) -> None:
    """Copies the code that the manifest lists from where `saved` was loaded.

    Raises:
        OSError, ValueError: it is not there, or no longer the code that is running.
    """
    named = getattr(saved, "config", None) or getattr(saved, "tokenizer", None)
    source = getattr(named, "name_or_path", None)
    if not source:
        raise OSError("it is not known where it was loaded from")
    if os.path.isabs(source) and not os.path.isdir(source):
        raise OSError(f"{source} is gone")
    module = type(saved).__module__
    commit = module.split(".")[-2]  # of a repository's code; for a folder's there is a shorter hash
    revision = commit if re.fullmatch("[0-9a-f]{40}", commit) else None

    def read(name: str) -> bytes:
        return Path(cached_file(source, name, revision=revision)).read_bytes()

    manifest = json.loads(read(MANIFEST))
    if not (isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) and "hfvlm" in manifest):
        raise ValueError(f"{MANIFEST} of {source} does not list the modules and the version of hfvlm that they are of")
    running = Path(sys.modules[module].__file__).parent
    code = {}
    for name, digest in manifest["files"].items():
        if Path(name).name != name or not name.endswith(".py"):
            raise ValueError(f"{MANIFEST} of {source} lists {name!r}, which is no module beside it")
        code[name] = read(name)
        if (running / name).is_file() and (running / name).read_bytes() != code[name]:
            raise ValueError(f"{name} in {source} has changed since it was loaded")
        if hashlib.sha256(code[name]).hexdigest() != digest:
            raise ValueError(f"{name} in {source} has changed since it was saved: {MANIFEST} has another hash")
    write_code(folder, code, manifest["hfvlm"])


def write_code(folder: Path, code: dict[str, bytes], version: str) -> None:
    """Writes modules, and the manifest that lists them with their hashes."""
    for name, text in code.items():
        (folder / name).write_bytes(text)
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in sorted(code.items())}
    edit_json(folder / MANIFEST, {"hfvlm": version, "files": hashes})


def edit_json(path: Path, entries: dict[str, Any]) -> None:
    """Sets entries (None: removes) of a JSON file, laid out as transformers does."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content.update(entries)
    for key in [key for key, value in entries.items() if value is None]:
        del content[key]
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _drop_dangling(path: Path) -> list[str]:
    """Removes what points to modules that are not beside config.json; returns the names of what was removed."""
    if not path.is_file():
        return []
    config = json.loads(path.read_text(encoding="utf-8"))

    def is_there(reference: str) -> bool:
        return "--" in reference or (path.parent / f"{reference.split('.')[0]}.py").is_file()

    kept = {
        "auto_map": {auto: ref for auto, ref in config.get("auto_map", {}).items() if is_there(ref)},
        "custom_pipelines": {
            task: info for task, info in config.get("custom_pipelines", {}).items() if is_there(info["impl"])
        },
    }
    dropped = [f"{field}[{key!r}]" for field in kept for key in config.get(field, {}) if key not in kept[field]]
    if dropped:
        edit_json(path, {field: value or None for field, value in kept.items()})
    return dropped


def _name_pipeline_classes(config: Any) -> None:
    """`transformers.pipeline` leaves classes in its model's config where names stood, which JSON cannot hold."""
    for info in (getattr(config, "custom_pipelines", None) or {}).values():
        classes = info.get("pt", ())
        classes = [classes] if isinstance(classes, str) else classes
        info["pt"] = [name if isinstance(name, str) else name.__name__ for name in classes]


def _times(folder: Path) -> dict[str, int]:
    """Each file under the folder, by its path in it -> when it was written, in nanoseconds."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def _commit(
    saved: Any,
    folder: Path,
    files: list[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | str | None = None,
) -> CommitInfo:
    """Commits files of a folder, and the model card, at once."""
    api = HfApi(library_name="hfvlm", token=token)
    tags = [*(getattr(saved, "model_tags", None) or []), *([tags] if isinstance(tags, str) else tags or [])]
    with _explained(api, repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents: dict[str, Path | bytes] = {name: folder / name for name in sorted(files)}
        card = _card(api, folder, repo_id, revision, tags)
        contents.pop("README.md", None)
        if card is not None:
            contents["README.md"] = card.encode()
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()],
            commit_message=commit_message or f"Upload {type(saved).__name__}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def _card(api: HfApi, folder: Path, repo_id: str, revision: str | None, tags: list[str]) -> str | None:
    """The model card to commit; None if the one in the repository stays as it is."""
    if api.file_exists(repo_id, "README.md", revision=revision):
        if not tags:
            return None
        card = ModelCard.load(api.hf_hub_download(repo_id, "README.md", revision=revision))
    elif (folder / "README.md").is_file():
        card = ModelCard((folder / "README.md").read_text(encoding="utf-8").replace(UNNAMED, repo_id))
    else:
        data = ModelCardData(library_name="transformers")
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n")
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags])) or None
    return str(card)


@contextmanager
def _explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Errors of the Hub's client, with what they mean for the push."""
    try:
        yield
    except HfHubHTTPError as error:
        hint = " Log in with `hf auth login`, or pass token=." if error.response.status_code in (401, 403) else ""
        error.append_to_message(f"\nNothing was committed to {repo_id} at {api.endpoint}.{hint}")
        raise
    except _HttpError as error:
        raise ConnectionError(
            f"cannot reach the Hub at {api.endpoint} ({error}); nothing was committed to {repo_id}"
        ) from error
