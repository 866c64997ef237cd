"""ALIGN checkpoints in transformers' format -> hfvlm folders, and back.

    python conversion/convert_align.py --checkpoint align-base --output align --verify
    python conversion/convert_align.py --checkpoint align --output in-tree-folder --to transformers

Reads folders of transformers' `AlignModel`, the format that published weights are in, and hfvlm folders. Fields that
its configuration lacks come from `--config`, a JSON file with fields of `hfvlm.AlignConfig`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BertTokenizer, EfficientNetImageProcessorPil

from hfvlm.conversion import align_rules, command, folder, images
from hfvlm.conversion.blip_processor import TOKENIZER_FILES
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.rules import invert
from hfvlm.models.align.configuration_align import VARIANTS, AlignConfig
from hfvlm.models.align.modeling_align import AlignModel
from hfvlm.models.align.processing_align import AlignProcessor, image_processor_for


#: what to call the towers in an error
TOWERS = {"vision_config": "image tower", "text_config": "text tower"}


def convert(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> AlignModel:
    """An `AlignModel` from one of transformers.

    Args:
        checkpoint: a folder, or a transformers model.
        variant: a size, a key of `hfvlm.models.align.configuration_align.VARIANTS`; it must be the checkpoint's.
        config: fields of `AlignConfig`, or a JSON file of them, over those of the checkpoint.
        image_size: pixels a side that the model is to take; by default what the folder's image processor gives, or
            what the configuration says.
        output: folder to save the model in, with its processor if there is a tokenizer.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype.

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, not ALIGN, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted(checkpoint, variant, config, image_size, output, verify).model


def to_transformers(model: AlignModel) -> transformers.AlignModel:
    """The same model as transformers' own class, in the same dtype.

    A text tower without the pooler that transformers' has, and that no feature reads, gets one of zeros.

    Raises:
        ValueError: the model has something that has no place there; names it.
    """
    theirs = transformers.AlignModel(align_rules.in_tree_config(model.config))
    if not model.config.text_pooler:
        for parameter in theirs.text_model.pooler.parameters():
            nn.init.zeros_(parameter)
    folder.fill(theirs, invert(align_rules.in_tree_rules(model.config.text_pooler)), model.state_dict())
    return theirs.eval()


def _converted(checkpoint, variant, config, image_size, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    conversion = _build(command.open_source(checkpoint), variant, config, image_size)
    conversion.model.eval()
    if verify:
        _verify(conversion.model)
    if output is not None:
        command.save(output, conversion.model, conversion.processor)
    return conversion


def _build(source: Checkpoint, variant, config, image_size) -> Conversion:
    kind = (source.config or {}).get("model_type")
    if not any(key.startswith("vision_model.embeddings.convolution.") for key in source.tensors):
        hint = "; it is an hfvlm folder already" if kind == AlignConfig.model_type else ""
        raise ValueError(
            "not an ALIGN checkpoint: expected vision_model.embeddings.convolution.weight, found "
            f"{', '.join(list(source.tensors)[:3])}, ...{hint}"
        )
    if kind != "align":
        raise ValueError(
            "ALIGN's weights need their config.json of model_type 'align': give the folder, not the file alone "
            f"(found model_type {kind!r})"
        )
    fields = align_rules.in_tree_fields(source.config, source.tensors)
    stored = images.stored(EfficientNetImageProcessorPil, source.folder)
    if stored is not None:  # configurations often name another size than the one that is used
        fields["vision_config"]["image_size"] = images.side_of(stored)
    merged = command.merged_config(AlignConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS)
    model = AlignModel(merged)
    dropped = folder.fill(model, align_rules.in_tree_rules(merged.text_pooler), source.tensors)
    return Conversion(model, _processor(source.folder, merged), dropped)


def _has_tokenizer(beside: Path | None) -> bool:
    return beside is not None and any((beside / name).is_file() for name in TOKENIZER_FILES)


def _processor(beside: Path | None, config: AlignConfig) -> AlignProcessor | None:
    """A folder's processor, its images of the model's size; None if it has no tokenizer."""
    if not _has_tokenizer(beside):
        return None
    tokenizer, side = BertTokenizer.from_pretrained(beside), config.vision_config.image_size
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
    stored = images.stored(EfficientNetImageProcessorPil, beside)
    return AlignProcessor(images.fitted(stored or image_processor_for(side), side), tokenizer)


@torch.no_grad()
def _verify(model: AlignModel) -> None:
    pixels = command.random_pixels(model.config.vision_config, model.dtype)
    outputs = model(pixel_values=pixels, input_ids=torch.zeros(2, 4, dtype=torch.long), return_loss=False)
    folder.require_finite("similarities", outputs.logits_per_image)


def _opened(path: Path) -> Conversion | None:
    """A model and its processor from an hfvlm folder; None if `path` is something else."""
    if command.model_type_of(path) != AlignConfig.model_type:
        return None
    model = AlignModel.from_pretrained(path).eval()
    processor = AlignProcessor.from_pretrained(path) if _has_tokenizer(path) else None
    return Conversion(model, processor, {})


def _back(conversion: Conversion) -> Conversion:
    ours: Any = conversion.processor
    processor = None if ours is None else transformers.AlignProcessor(ours.image_processor, ours.tokenizer)
    return Conversion(to_transformers(conversion.model), processor, conversion.dropped)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = command.argument_parser(__doc__, VARIANTS, "AlignConfig").parse_args(argv)

    def convert_to(output: Path | None) -> Conversion:
        return _converted(args.checkpoint, args.variant, args.config, args.image_size, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        config = conversion.model.config
        if args.to == "transformers" and (config.label_smoothing, config.objective) != (0.1, "softmax"):
            yield "objective and label_smoothing are not carried over: transformers' ALIGN has softmax and 0.1"
        if conversion.processor is None:
            yield "no processor written: give a folder with a tokenizer"

    return command.run("convert_align", args, convert_to, _opened, _back, notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
