"""What every `convert_<arch>.py` does alike: opening the source, merging the configuration, and the command itself."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from hfvlm.conversion import folder
from hfvlm.conversion.checkpoint import Checkpoint, read_checkpoint, unwrap


Source = str | Path | Mapping[str, torch.Tensor] | PreTrainedModel
ConfigLike = str | Path | Mapping[str, Any] | None


class Conversion(NamedTuple):
    """A converted model, and what is said of it.

    Attributes:
        processor: goes with the model; where there is no vocabulary its images' alone, or None.
        dropped: the source keys that were left out, each with the reason.
        guesses: fields that neither the source nor the caller told, by the sub-config that they are in.
    """

    model: PreTrainedModel
    processor: Any | None
    dropped: dict[str, str]
    guesses: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def open_source(checkpoint: Source) -> Checkpoint:
    """A file, a folder, a state dict or a transformers model, as tensors and what is known of them.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    if isinstance(checkpoint, PreTrainedModel):
        generation = getattr(checkpoint, "generation_config", None)  # an image tower has none
        generation = None if generation is None else generation.to_diff_dict()
        return Checkpoint(dict(checkpoint.state_dict()), checkpoint.config.to_dict(), generation)
    if isinstance(checkpoint, Mapping):
        return Checkpoint(unwrap(checkpoint, "the state dict"))
    return read_checkpoint(checkpoint)


def read_config(config: ConfigLike) -> dict[str, Any] | None:
    """The caller's fields, read where they are in a JSON file.

    Raises:
        ValueError: it is JSON itself, or the file holds no mapping.
        FileNotFoundError: there is no such file.
    """
    if isinstance(config, (str, Path)):
        if str(config).lstrip().startswith("{") and not Path(config).is_file():
            raise ValueError(
                f"--config takes a JSON file, not JSON itself: write {config} to a file and give its path"
            )
        path, config = config, json.loads(Path(config).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"--config {path} must hold a JSON object of fields, not {type(config).__name__}")
    return None if config is None else dict(config)


def merged_config(
    config_class: type[PreTrainedConfig],
    variants: Mapping[str, Mapping[str, Any]],
    fields: Mapping[str, Any],
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    *,
    towers: Mapping[str, str],
    image_tower: str = "vision_config",
    advice: str | None = None,
) -> PreTrainedConfig:
    """What the source tells, then the variant, then the caller's config, each over the one before.

    Args:
        config_class: with a `variant(name, **fields)` class method.
        variants: name -> fields, as `config_class.variant` knows them.
        fields: what the source tells.
        config: the caller's fields, or a JSON file of them.
        image_size: pixels a side, for the sub-config that `image_tower` names.
        towers: sub-config -> what to call its tower in an error. A tower with a width needs its number of heads.
        advice: what to do first where heads cannot be told.

    Raises:
        ValueError: unknown variant or fields, heads that cannot be told, or sizes that cannot go together.
        FileNotFoundError: there is no file `config`.
    """
    config = read_config(config) or {}
    if variant is not None:
        config_class.variant(variant)  # refuses a name that it does not know
    named = variants.get(variant, {})
    merged = {**fields, **{key: value for key, value in named.items() if key not in towers}, **config}
    for key, tower in towers.items():
        merged[key] = {**fields.get(key, {}), **named.get(key, {}), **config.get(key, {})}
        if "hidden_size" in merged[key] and "num_attention_heads" not in merged[key]:
            raise ValueError(
                f"the {tower}'s heads cannot be told from its width {merged[key]['hidden_size']} (published ones are "
                f"64 wide): {'' if advice is None else f'{advice}; else '}give a --variant, or --config FILE with "
                f'{{"{key}": {{"num_attention_heads": ...}}}}'
            )
    if image_size is not None:
        merged[image_tower]["image_size"] = image_size
    try:
        built = config_class(**merged) if variant is None else config_class.variant(variant, **merged)
    except StrictDataclassError as error:  # a field's type, or sizes that cannot go together
        raise ValueError(str(error)) from error
    for part, known in ((config, built), *((config.get(key, {}), getattr(built, key)) for key in towers)):
        unknown = [name for name in part if not hasattr(type(known), name)]
        if unknown:
            raise ValueError(f"config has unknown fields for {type(known).__name__}: {', '.join(unknown)}")
    return built


def own_fields(config_class: type[PreTrainedConfig], source: Checkpoint, towers: Iterable[str]) -> dict[str, Any]:
    """Fields of an architecture in the `config.json` of its hfvlm folder, for `merged_config`."""
    unlike = {"architectures", "transformers_version", "dtype"}
    fields = {
        name: value
        for name, value in source.config.items()
        if name in config_class.__dataclass_fields__.keys() - unlike
    }
    for part in towers:
        fields[part] = {name: value for name, value in source.config[part].items() if name not in unlike}
    return fields


def random_pixels(tower: PreTrainedConfig, dtype: torch.dtype, images: int = 2) -> torch.Tensor:
    """The same random pixels every time, `[images, channels, image_size, image_size]`, to try a converted model on."""
    size = (images, tower.num_channels, tower.image_size, tower.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)


def save(output: str | Path, *parts: PreTrainedModel | ProcessorMixin | None) -> None:
    """Writes what is there of a model and its processor to a new folder: all of it, or nothing.

    Raises:
        FileExistsError: `output` is a file, or a folder that is not empty.
    """
    with folder.new_folder(output) as draft:
        for part in parts:
            if part is not None:
                part.save_pretrained(draft)


def argument_parser(doc: str, variants: Iterable[str], config: str) -> argparse.ArgumentParser:
    """The options that every converter has; an architecture may add its own.

    Args:
        doc: the script's docstring, its `--help`.
        variants: names for `--variant`.
        config: name of the configuration class whose fields `--config` takes.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights file, transformers or hfvlm folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--variant", help=f"published size: {', '.join(variants)}")
    parser.add_argument("--config", type=Path, help=f"JSON file with fields of {config}")
    parser.add_argument("--image-size", type=int, help="pixels a side; resizes the position table")
    parser.add_argument("--to", choices=("hfvlm", "transformers"), default="hfvlm", help="format to write")
    parser.add_argument("--verify", action="store_true", help="run the converted model once; it must be finite")
    return parser


def model_type_of(path: Path) -> str | None:
    """`model_type` in the `config.json` of a folder; None if `path` is something else."""
    file = path / "config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None


def run(
    name: str,
    args: argparse.Namespace,
    convert: Callable[[Path | None], Conversion],
    opened: Callable[[Path], Conversion | None] | None = None,
    to_transformers: Callable[[Conversion], Conversion] | None = None,
    *,
    wishes: Iterable[str] = (),
    notes: Callable[[Conversion], Iterable[str]] = lambda conversion: (),
) -> int:
    """Does what the command line asks for, and says what was done or, in one line, why it was not.

    Args:
        name: the script's, before its errors.
        args: of `argument_parser`.
        convert: converts `args.checkpoint`, and writes it to the folder that it is given, if to any.
        opened: the model of an hfvlm folder, for the way back; None if the path is no such folder.
        to_transformers: the same model as transformers' own class.
        wishes: the architecture's own options that an hfvlm folder has no use for, beside variant, config, image size.
        notes: what else to say of a model before it is turned into transformers' format, or of one that is written.

    Returns:
        the command's exit status.
    """
    back = args.to == "transformers"
    try:
        if back and to_transformers is None:
            raise ValueError("transformers has no such architecture: leave --to out")
        folder.check_output(args.output)
        conversion, verified = (opened(args.checkpoint) if back else None), False
        if conversion is None:
            conversion = convert(None if back else args.output)
            verified = args.verify
        elif any(getattr(args, wish) is not None for wish in ("variant", "config", "image_size", *wishes)):
            raise ValueError("an hfvlm folder has its sizes and vocabulary: leave --variant, --config, ... out")
        said = list(notes(conversion))
        if back:
            conversion = to_transformers(conversion)
            save(args.output, conversion.model, conversion.processor)
    except (ValueError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    for reason, count in Counter(conversion.dropped.values()).items():
        print(f"left out {count} keys: {reason}")
    for note in said:
        print(note)
    if verified:
        print("verified: one forward pass, its outputs finite; a wrong activation, heads or pooling would pass it too")
    print(f"{args.output}: {sum(p.numel() for p in conversion.model.parameters()):,} parameters")
    return 0
