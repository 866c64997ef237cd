"""`pipeline`: transformers', and the tasks that it no longer serves."""

import difflib
import os
from typing import TYPE_CHECKING, Any

from hfvlm.pipelines.loading import load_whole, unreadable
from hfvlm.registry import ARCHITECTURES, Architecture, auto_class, load


if TYPE_CHECKING:
    import torch
    from transformers import Pipeline, PreTrainedConfig, PreTrainedModel, ProcessorMixin


def pipeline(
    task: str | None = None,
    model: "str | PreTrainedModel | None" = None,
    config: "str | PreTrainedConfig | None" = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    video_processor: Any = None,
    processor: "str | ProcessorMixin | None" = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: "int | str | torch.device | None" = None,
    device_map: str | dict[str, Any] | None = None,
    dtype: "str | torch.dtype | None" = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any | None = None,
    **kwargs: Any,
) -> "Pipeline":
    """A pipeline for a task: hfvlm's own where the model is one of its architectures, else transformers'.

    ```python
    >>> pipeline("image-to-text")("photo.jpg")  # the built-in model
    >>> pipeline("image-to-text", model="folder-or-hub-name", dtype="bfloat16")
    ```

    Args:
        task: left out, it is the only one that the model's head has.
        model: a folder, a name on the Hub, or a model (with `processor`). Left out: the built-in model,
            if the task has one.
        kwargs: for the pipeline, e.g. `batch_size`, `max_new_tokens`.

    The other arguments mean what they mean in `transformers.pipeline`.

    Raises:
        ValueError: an unknown task (names the nearest), or one that the model's architecture does not have; a model
            that lacks weights.
    """
    arguments = {**locals()}
    arguments.update(arguments.pop("kwargs"))
    served = {name for row in ARCHITECTURES.values() for name in row.pipelines}
    if model is None:
        from hfvlm.builtin import BUILTIN, builtin_model

        if task in served or task in BUILTIN:
            arguments["model"] = str(builtin_model(task))
    if task in served or task is None:
        own = _own_task(arguments, served)
        if own is not None:
            return _build(*own, arguments)
    return _pass_on(arguments, served)


def _own_task(arguments: dict[str, Any], served: set[str]) -> tuple[Architecture, str] | None:
    """The model's architecture and the task that hfvlm serves for it; None if that is for transformers to serve."""
    from transformers.pipelines import get_supported_tasks

    task = arguments["task"]
    fields = _config_fields(arguments)
    row = ARCHITECTURES.get(fields.get("model_type"))
    if task is None:
        if row is None or not row.pipelines:
            return None
        saved = {row.heads[auto].split(":")[1]: auto for _, auto in row.pipelines.values()}
        autos = {saved.get(name) for name in fields.get("architectures") or ()} - {None}
        tasks = [name for name, (_, auto) in row.pipelines.items() if auto in autos or len(row.pipelines) == 1]
        if len(tasks) != 1:
            raise ValueError(f"{row.title} has several tasks, name one: {', '.join(tasks or row.pipelines)}")
        return row, tasks[0]
    if row is not None and task in row.pipelines:
        return row, task
    if task in get_supported_tasks() or task in (fields.get("custom_pipelines") or {}):
        return None
    title = row.title if row else f"model_type {fields.get('model_type')!r}"
    tasks = f"it has {', '.join(row.pipelines) or 'none'}" if row else "it is no architecture of hfvlm"
    able = ", ".join(other.title for other in ARCHITECTURES.values() if task in other.pipelines)
    raise ValueError(f"{title} has no pipeline {task!r}: {tasks}; architectures with {task!r}: {able}")


def _hub_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Where and how to look on the Hub, of what the caller gave."""
    given = {**(arguments["model_kwargs"] or {}), **arguments}
    names = ("cache_dir", "revision", "token", "local_files_only", "code_revision", "trust_remote_code")
    return {name: given[name] for name in names if given.get(name) is not None}


def _config_fields(arguments: dict[str, Any]) -> dict[str, Any]:
    """config.json of the model that is meant, without running any code that comes with it; {} if there is none."""
    from transformers import PreTrainedConfig

    source = arguments["config"] if arguments["config"] is not None else arguments["model"]
    if source is None:
        return {}
    if not isinstance(source, (str, os.PathLike)):
        config = getattr(source, "config", source)
        fields = {name: getattr(config, name, None) for name in ("model_type", "custom_pipelines", "architectures")}
        return fields if source is config else {**fields, "architectures": [type(source).__name__]}
    hub = {name: value for name, value in _hub_options(arguments).items() if name != "trust_remote_code"}
    try:
        fields = PreTrainedConfig.get_config_dict(source, **hub)[0]
    except OSError as error:
        if arguments["task"] is not None:
            raise OSError(unreadable(source, error)) from error
        fields = {}
    if not fields and arguments["task"] is not None:  # without a task, transformers may infer it from the Hub
        raise ValueError(f"{os.fspath(source)!r} has no config.json: it is not the folder of a model")
    return fields


def _build(row: Architecture, task: str, arguments: dict[str, Any]) -> "Pipeline":
    """Loads what the caller named and constructs the pipeline of an architecture.

    Not through `transformers.pipeline`: if a model cannot be loaded that one goes on to try a class of its own with
    the same name, and buries the error.
    """
    import transformers

    options = dict(arguments)
    model, config, processor = options.pop("model"), options.pop("config"), options.pop("processor")
    for name in ("tokenizer", "feature_extractor", "image_processor", "video_processor"):
        if options.pop(name) is not None:
            raise ValueError(
                f"{task!r} takes processor=, which holds the tokenizer and the image processor, not {name}="
            )
    hub = _hub_options(arguments)
    model_kwargs = dict(options.pop("model_kwargs") or {})
    pipeline_class, head = row.pipelines[task]
    pipeline_class = options.pop("pipeline_class") or load(pipeline_class)
    dtype, device_map = options.pop("dtype"), options.pop("device_map")
    dtype = options.pop("torch_dtype", None) or dtype
    for name in ("task", "use_fast", "revision", "token", "local_files_only", "code_revision", "trust_remote_code"):
        options.pop(name, None)

    name = model if isinstance(model, (str, os.PathLike)) else None
    if processor is None and name is None:
        raise ValueError(f"{task!r} with a model that is loaded already needs processor=, the model's own")
    if name is not None:
        model = _load_head(head, name, config, dtype, device_map, model_kwargs, hub)
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = transformers.AutoProcessor.from_pretrained(processor or name, **hub)
    return pipeline_class(model=model, processor=processor, task=task, **options)


def _load_head(
    auto: str,
    name: str | os.PathLike,
    config: Any,
    dtype: Any,
    device_map: Any,
    model_kwargs: dict[str, Any],
    hub: dict[str, Any],
) -> Any:
    """The model of an auto class, which must have all of its weights."""
    import transformers

    model_kwargs = {**model_kwargs}
    if dtype is not None:
        model_kwargs.setdefault("dtype", dtype)
    if device_map is not None:
        if "device_map" in model_kwargs:
            raise ValueError("device_map is given twice: as an argument, and in model_kwargs")
        model_kwargs["device_map"] = device_map
    if isinstance(config, (str, os.PathLike)):
        config = transformers.AutoConfig.from_pretrained(config, **hub)
    if config is not None:
        model_kwargs["config"] = config
    return load_whole(auto_class(auto), name, **{**model_kwargs, **hub})


def _with_whole_model(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the model loaded, if it is a folder of hfvlm's for a task that transformers serves: by itself
    that one would fill in random weights where they are missing, and go on."""
    from transformers import pipelines

    task, name = arguments["task"], arguments["model"]
    if task not in pipelines.get_supported_tasks() or not isinstance(name, (str, os.PathLike)):
        return arguments
    served = pipelines.check_task(task)[1]
    autos = [cls.__name__ for cls in served["pt"]]
    if not any(auto in row.heads for row in ARCHITECTURES.values() for auto in autos):
        return arguments
    try:
        row = ARCHITECTURES.get(_config_fields(arguments).get("model_type"))
    except (OSError, ValueError):  # for transformers to tell
        return arguments
    auto = next((auto for auto in autos if row is not None and auto in row.heads), None)
    if auto is None:
        return arguments
    hub, found = _hub_options(arguments), {**arguments}
    named = ("config", "dtype", "device_map", "model_kwargs")
    config, dtype, device_map, model_kwargs = (found.pop(option) for option in named)
    dtype = found.pop("torch_dtype", None) or dtype
    found["model"] = _load_head(auto, name, config, dtype, device_map, model_kwargs or {}, hub)
    impl = served["impl"]
    if isinstance(impl, str):  # newer transformers name the class
        impl = load(":".join(impl.rsplit(".", 1)))
    for part in ("processor", "tokenizer", "image_processor", "feature_extractor"):
        # what the pipeline reads of the folder; by the model alone, which is loaded, it would not know where to look
        if found[part] is None and getattr(impl, f"_load_{part}", None):
            found[part] = os.fspath(name)
    return found


def _pass_on(arguments: dict[str, Any], served: set[str]) -> "Pipeline":
    """`transformers.pipeline`, with the nearest name in its error for an unknown task."""
    from transformers import pipelines

    task, known = arguments["task"], pipelines.get_supported_tasks()
    arguments = _with_whole_model(arguments)
    try:
        return pipelines.pipeline(**arguments)
    except KeyError as error:
        if task is None or task in known:
            raise
        near = difflib.get_close_matches(task, [*known, *served], n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no pipeline for task {task!r}{hint} ({error.args[0]})") from error
