"""BLIP checkpoints -> hfvlm folders, and back to transformers' format.

    python conversion/convert_blip.py --checkpoint model_base_caption.pth --output blip-captioner --vocab vocab.txt
    python conversion/convert_blip.py --checkpoint blip-captioner --output in-tree-folder --to transformers
    python conversion/convert_blip.py --checkpoint any_blip.pth --output tower --part vision --image-size 480

Reads the original release (https://github.com/salesforce/BLIP), folders of transformers'
`BlipForConditionalGeneration`, and hfvlm folders. Sizes come from the weights; heads (64 wide unless told),
normalisation and activation from `--variant` or `--config`, a JSON file with fields of `hfvlm.BlipConfig`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from hfvlm.conversion import blip_rules, command, folder
from hfvlm.conversion.blip_processor import carried_processor, in_tree_processor, read_vocab, release_processor
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.rules import apply, invert
from hfvlm.encoders.vit import VitTower
from hfvlm.models.blip.configuration_blip import VARIANTS, BlipConfig
from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration
from hfvlm.models.blip.processing_blip import BlipProcessor


#: what to call the towers in an error
TOWERS = {"vision_config": "vision tower", "text_config": "text decoder"}


def convert(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    vocab: str | Path | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> BlipForConditionalGeneration:
    """A captioner from a checkpoint of the original release (captioning or pretraining) or of transformers.

    Args:
        checkpoint: a file, a folder, a state dict, or a transformers model.
        variant: a published size, a key of `hfvlm.models.blip.configuration_blip.VARIANTS`.
        config: fields of `BlipConfig`, or a JSON file of them, for what the shapes do not tell.
        image_size: pixels a side; the position table is resized if the checkpoint's is another.
        vocab: BERT's `vocab.txt` as the release used it; looked for beside the checkpoint if left out.
        output: folder to save the model in, with its processor if there is a vocabulary or tokenizer.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype. A release's searches with beams as the release does
        (`config.release_beam_search`).

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` or `vocab` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, not BLIP, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted("captioner", checkpoint, variant, config, image_size, vocab, output, verify).model


def convert_vision(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> VitTower:
    """The image tower of any BLIP, whatever its heads; arguments and errors as in `convert`."""
    return _converted("vision", checkpoint, variant, config, image_size, None, output, verify).model


def to_transformers(model: BlipForConditionalGeneration) -> transformers.BlipForConditionalGeneration:
    """The same captioner as transformers' own class, in the same dtype.

    Raises:
        ValueError: the model's image tower has no place there.
    """
    theirs = transformers.BlipForConditionalGeneration(blip_rules.in_tree_config(model.config))
    folder.fill(theirs, invert(blip_rules.IN_TREE_CAPTIONER), model.state_dict())
    for part in (theirs, theirs.text_decoder):  # the first is saved, the second is what its generate() asks
        folder.carry_generation(model.generation_config.to_diff_dict(), part)
    return theirs.eval()


def to_release_keys(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A captioner's tensors (weights, gradients) under the keys of the original release."""
    return apply(invert(blip_rules.RELEASE_CAPTIONER), tensors).tensors


def _converted(part, checkpoint, variant, config, image_size, vocab, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    source = command.open_source(checkpoint)
    build = _captioner if part == "captioner" else _vision
    conversion = build(source, variant, config, image_size, vocab)
    conversion.model.eval()
    if verify:
        _verify(conversion.model)
    if output is not None:
        command.save(output, conversion.model, conversion.processor)
    return conversion


def _is_release(source: Checkpoint) -> bool:
    """Whether the keys are the original release's; if not they are transformers', with its configuration."""
    if any(key.startswith("visual_encoder.") for key in source.tensors):
        return True
    kind = (source.config or {}).get("model_type")
    if not any(key.startswith("vision_model.embeddings.") for key in source.tensors):
        hint = "; it is an hfvlm folder already" if kind == BlipConfig.model_type else ""
        raise ValueError(
            "not a BLIP checkpoint: expected visual_encoder.* (original release) or vision_model.embeddings.* "
            f"(transformers), found {', '.join(list(source.tensors)[:3])}, ...{hint}"
        )
    if kind != "blip":
        raise ValueError(
            "weights in transformers' format need their config.json of model_type 'blip': give the folder, "
            f"not the file alone (found model_type {kind!r})"
        )
    return False


def _captioner(source: Checkpoint, variant, config, image_size, vocab) -> Conversion:
    released, words = _is_release(source), None
    if not any(key.startswith("text_decoder.") for key in source.tensors):
        raise ValueError(
            "the checkpoint has no text_decoder.*, so it is no captioner; its image tower alone: --part vision, or "
            "convert_vision()"
        )
    if released:
        words = _words(vocab, source.folder)
        fields = blip_rules.release_fields(source.tensors, words)
        rules = blip_rules.release_captioner_rules(source.tensors)
    else:
        fields, rules = blip_rules.in_tree_fields(source.config), blip_rules.IN_TREE_CAPTIONER
    model = BlipForConditionalGeneration(_config(fields, variant, config, image_size))
    dropped = folder.fill(model, rules, source.tensors)
    if released:
        processor = None if words is None else release_processor(words, model.config)
    else:
        folder.carry_generation(source.generation or {}, model)
        processor = carried_processor(source.folder, model.config)
    return Conversion(model, processor, dropped)


def _vision(source: Checkpoint, variant, config, image_size, vocab) -> Conversion:
    if _is_release(source):
        fields, rules = blip_rules.release_fields(source.tensors, None), blip_rules.RELEASE_VISION
    else:
        fields, rules = blip_rules.in_tree_fields(source.config), blip_rules.IN_TREE_VISION
    fields = {"vision_config": fields["vision_config"]}  # the text tower may be any head's
    tower = VitTower(_config(fields, variant, config, image_size).vision_config)
    return Conversion(tower, None, folder.fill(tower, rules, source.tensors))


def _words(vocab: str | Path | None, beside: Path | None) -> dict[str, int] | None:
    if vocab is not None:
        return read_vocab(Path(vocab))
    found = beside is not None and (beside / "vocab.txt").is_file()
    return read_vocab(beside / "vocab.txt") if found else None


def _config(fields: dict[str, Any], variant: str | None, config: ConfigLike, image_size: int | None) -> BlipConfig:
    return command.merged_config(BlipConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS)


@torch.no_grad()
def _verify(model: PreTrainedModel) -> None:
    outputs = model(command.random_pixels(getattr(model.config, "vision_config", model.config), model.dtype))
    if isinstance(model, BlipForConditionalGeneration):
        folder.require_finite("logits", outputs.logits)
    else:
        folder.require_finite("image tokens", outputs.last_hidden_state)


def _opened(path: Path) -> Conversion | None:
    """A captioner and its processor from an hfvlm folder; None if `path` is something else."""
    if command.model_type_of(path) != BlipConfig.model_type:
        return None
    model = BlipForConditionalGeneration.from_pretrained(path).eval()
    processor = BlipProcessor.from_pretrained(path) if (path / "tokenizer.json").is_file() else None
    return Conversion(model, processor, {})


def _in_tree(conversion: Conversion) -> Conversion:
    processor = None if conversion.processor is None else in_tree_processor(conversion.processor)
    return Conversion(to_transformers(conversion.model), processor, conversion.dropped)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command.argument_parser(__doc__, VARIANTS, "BlipConfig")
    parser.add_argument("--vocab", type=Path, help="the release's vocab.txt; default: the one beside the checkpoint")
    parser.add_argument("--part", choices=("captioner", "vision"), default="captioner", help="what to convert")
    args = parser.parse_args(argv)
    if args.to == "transformers" and args.part == "vision":
        parser.error("--to transformers writes a captioner: leave --part out")

    def convert_to(output: Path | None) -> Conversion:
        wishes = (args.variant, args.config, args.image_size, args.vocab)
        return _converted(args.part, args.checkpoint, *wishes, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        if args.to == "transformers" and conversion.model.config.release_beam_search:
            yield "release_beam_search is not carried over: transformers' own beam search can give other captions"
        if conversion.processor is None and args.part == "captioner":
            yield "no processor written: give --vocab, or a folder with a tokenizer"

    return command.run("convert_blip", args, convert_to, _opened, _in_tree, wishes=("vocab",), notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
