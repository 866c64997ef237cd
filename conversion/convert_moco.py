"""MoCo checkpoints -> hfvlm folders.

    python conversion/convert_moco.py --checkpoint moco_v2_800ep_pretrain.pth.tar --output moco-v2
    python conversion/convert_moco.py --checkpoint vit-b-300ep.pth.tar --output tower --part vision
    python conversion/convert_moco.py --checkpoint linear-vit-b-300ep.pth.tar --output classifier

Reads the original releases (https://github.com/facebookresearch/moco, https://github.com/facebookresearch/moco-v3):
pretraining checkpoints become a `MocoForPreTraining`, linear probes a `MocoForImageClassification`, and
`--part vision` writes the encoder of either as a tower of its own (`ResNetTower`, `VitTower`). Sizes come from the
weights; temperature and momentum are the release's defaults unless `--config`, a JSON file with fields of
`hfvlm.MocoConfig`, says otherwise.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hfvlm.conversion import command, folder, moco_rules
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.rules import apply, invert
from hfvlm.encoders.build import vision_tower
from hfvlm.encoders.vit import VitTower
from hfvlm.models.moco.configuration_moco import VARIANTS, MocoConfig
from hfvlm.models.moco.modeling_moco import MocoForImageClassification
from hfvlm.models.moco.pretraining_moco import MocoForPreTraining
from hfvlm.models.moco.processing_moco import MocoProcessor, image_processor_for


def convert(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> MocoForPreTraining | MocoForImageClassification:
    """What a checkpoint of the original releases holds: pretraining, or the classifier of a linear probe.

    Args:
        checkpoint: a file, a folder or a state dict.
        variant: a published size, a key of `hfvlm.models.moco.configuration_moco.VARIANTS`.
        config: fields of `MocoConfig`, or a JSON file of them, for what the shapes do not tell.
        image_size: pixels a side.
        output: folder to save the model in, with its processor.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype; pretraining with momentum encoder and queue.

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, not MoCo, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted("model", checkpoint, variant, config, image_size, output, verify).model


def convert_vision(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> PreTrainedModel:
    """The encoder alone, as the tower that any architecture takes; arguments and errors as in `convert`."""
    return _converted("vision", checkpoint, variant, config, image_size, output, verify).model


def to_release_keys(model: MocoForPreTraining, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a pretraining model (weights, gradients) under the original release's keys, without "module."."""
    config = model.config
    vit = isinstance(model.vision_model, VitTower)
    rules = moco_rules.pretraining_rules(config.objective, vit, config.projection_layers)
    converted = apply(invert(rules), tensors).tensors
    if "queue" in converted:
        converted["queue"] = converted["queue"].t()
    return converted


def _converted(part, checkpoint, variant, config, image_size, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    source = command.open_source(checkpoint)
    if (source.config or {}).get("model_type") == MocoConfig.model_type:
        raise ValueError("the checkpoint is an hfvlm folder already")
    tensors = dict(source.tensors)
    if "queue" in tensors:
        tensors["queue"] = tensors["queue"].t()  # the release stores a key a column
    built = command.merged_config(
        MocoConfig,
        VARIANTS,
        moco_rules.release_fields(tensors),
        variant,
        config,
        image_size,
        towers={"vision_config": "encoder"},
    )
    form = moco_rules.form_of(tensors)
    if part == "vision":
        model, processor = vision_tower(built.vision_config), None
    else:
        model = (MocoForImageClassification if form == "probe" else MocoForPreTraining)(built)
        version = "v3" if built.objective == "symmetric" else "v1" if built.projection_layers == 1 else "v2"
        processor = MocoProcessor(image_processor_for(built.vision_config.image_size), augmentation=version)
    dropped = folder.fill(model, moco_rules.rules_of(tensors, part, built.projection_layers), tensors)
    model.eval()
    if verify:
        _verify(model, built)
    if output is not None:
        command.save(output, model, processor)
    return Conversion(model, processor, dropped)


@torch.no_grad()
def _verify(model: PreTrainedModel, config: MocoConfig) -> None:
    pixels = command.random_pixels(config.vision_config, model.dtype)
    if isinstance(model, MocoForPreTraining):
        folder.require_finite("logits", model(pixels, pixels.flip(-1)).logits)
    elif isinstance(model, MocoForImageClassification):
        folder.require_finite("logits", model(pixels).logits)
    else:
        folder.require_finite("image tokens", model(pixels).last_hidden_state)


def _notes(conversion: Conversion) -> Iterator[str]:
    config = conversion.model.config
    if isinstance(conversion.model, MocoForPreTraining):
        yield f"temperature {config.temperature}, momentum {config.momentum}: the release's, unless --config told"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command.argument_parser(__doc__, VARIANTS, "MocoConfig")
    parser.add_argument("--part", choices=("model", "vision"), default="model", help="what to convert")
    args = parser.parse_args(argv)

    def converted(output: Path | None) -> Conversion:
        return _converted(args.part, args.checkpoint, args.variant, args.config, args.image_size, output, args.verify)

    return command.run("convert_moco", args, converted, notes=_notes)


if __name__ == "__main__":
    raise SystemExit(main())
