"""ALBEF checkpoints -> hfvlm folders.

    python conversion/convert_albef.py --checkpoint ALBEF.pth --output albef --vocab vocab.txt
    python conversion/convert_albef.py --checkpoint mscoco.pth --output albef-coco --image-size 384

Reads the original release (https://github.com/salesforce/ALBEF): pretraining, retrieval, entailment and NLVR2; and
LAVIS's feature extractor. Sizes come from the weights; heads (64 wide unless told), normalisation and activation from
`--variant` or `--config`, a JSON file with fields of `hfvlm.AlbefConfig`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import BertTokenizer, BlipImageProcessorPil, PreTrainedModel

from hfvlm.conversion import albef_rules, command, folder, images
from hfvlm.conversion.blip_processor import vocabulary_of
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.rules import Rule, apply, invert
from hfvlm.models.albef.classes_albef import AlbefForImageClassification, AlbefForVisualReasoning
from hfvlm.models.albef.configuration_albef import VARIANTS, AlbefConfig
from hfvlm.models.albef.modeling_albef import AlbefModel
from hfvlm.models.albef.pretraining_albef import AlbefForImageTextRetrieval, AlbefForPreTraining
from hfvlm.models.albef.processing_albef import AlbefProcessor


#: what to call the towers in an error
TOWERS = {"vision_config": "vision tower", "text_config": "text tower"}


class Head(NamedTuple):
    """A head that a checkpoint may be of: its class, its key rules, and the prefix of its text tower."""

    cls: type[PreTrainedModel]
    rules: tuple[Rule, ...] | Callable[[Mapping[str, torch.Tensor]], tuple[Rule, ...]]
    text: str = "text_encoder."


HEADS = {
    "pretraining": Head(AlbefForPreTraining, albef_rules.PRETRAINING, "text_encoder.bert."),
    "retrieval": Head(AlbefForImageTextRetrieval, albef_rules.RETRIEVAL),
    "entailment": Head(AlbefForImageClassification, albef_rules.ENTAILMENT),
    "reasoning": Head(AlbefForVisualReasoning, albef_rules.reasoning),
    "features": Head(AlbefModel, albef_rules.FEATURES, "text_encoder.bert."),
}


def head_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The head that a checkpoint's keys are of, a key of `HEADS`.

    Raises:
        ValueError: none of those.
    """
    prefixes = {key.partition(".")[0] for key in tensors}
    if prefixes & {"text_decoder", "ta_head"}:
        raise ValueError("checkpoints of question answering and of text assignment are not converted yet")
    if "cls_head" in prefixes:
        first, pairs = albef_rules.paired_layers(tensors)
        one, two = (f"text_encoder.encoder.layer.{first + i}.crossattention.self.key.weight" for i in (0, 1))
        twins = pairs > 0 and torch.equal(tensors[one], tensors[two])  # layers of two images share keys and values
        return "reasoning" if twins else "entailment"
    if not {"visual_encoder", "vision_proj"} <= prefixes:
        raise ValueError(
            "not an ALBEF checkpoint: expected visual_encoder.* and vision_proj.*, found "
            f"{', '.join(list(tensors)[:3])}, ..."
        )
    if "image_queue" not in tensors:
        return "features"
    return "pretraining" if any(key.startswith("text_encoder.bert.") for key in tensors) else "retrieval"


def convert(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    vocab: str | Path | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> PreTrainedModel:
    """The head that a checkpoint of the original release (or of LAVIS) is of.

    Args:
        checkpoint: a file, a folder, or a state dict.
        variant: a published size, a key of `hfvlm.models.albef.configuration_albef.VARIANTS`.
        config: fields of `AlbefConfig`, or a JSON file of them, for what the shapes do not tell.
        image_size: pixels a side; the position tables are resized if the checkpoint's is another.
        vocab: BERT's `vocab.txt`; looked for beside the checkpoint if left out.
        output: folder to save the model in, with its processor if there is a vocabulary.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype.

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` or `vocab` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, not ALBEF, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted(checkpoint, variant, config, image_size, vocab, output, verify).model


def to_release_keys(
    tensors: Mapping[str, torch.Tensor], head: str, like: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """A head's tensors (weights, gradients) under the keys of the original release.

    Args:
        like: a release, where the head's keys depend on its layers.
    """
    return apply(invert(_rules(HEADS[head], like or {})), tensors).tensors


def _rules(head: Head, tensors: Mapping[str, torch.Tensor]) -> tuple[Rule, ...]:
    return head.rules if isinstance(head.rules, tuple) else head.rules(tensors)


def _converted(checkpoint, variant, config, image_size, vocab, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    conversion = _head(command.open_source(checkpoint), variant, config, image_size, vocab)
    conversion.model.eval()
    if verify:
        _verify(conversion.model)
    if output is not None:
        command.save(output, conversion.model, conversion.processor)
    return conversion


def _head(source: Checkpoint, variant, config, image_size, vocab) -> Conversion:
    name = head_of(source.tensors)
    head = HEADS[name]
    words = vocabulary_of(vocab, source.folder)
    fields = albef_rules.release_fields(source.tensors, words, head.text, paired=name == "reasoning")
    built = command.merged_config(AlbefConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS)
    model = head.cls(built)
    dropped = folder.fill(model, _rules(head, source.tensors), source.tensors)
    return Conversion(model, None if words is None else _processor(words, built), dropped)


def _processor(words: dict[str, int], config: AlbefConfig) -> AlbefProcessor:
    """The original's: its BERT vocabulary, squared images.

    Raises:
        ValueError: the vocabulary is not the checkpoint's.
    """
    text = config.text_config
    if len(words) != text.vocab_size:
        raise ValueError(
            f"the vocabulary has {len(words)} words, the checkpoint {text.vocab_size}: give the vocab.txt that it was "
            "trained with"
        )
    tokenizer = BertTokenizer(vocab=words, model_max_length=text.max_position_embeddings)
    return AlbefProcessor(images.fitted(BlipImageProcessorPil(), config.vision_config.image_size), tokenizer)


@torch.no_grad()
def _verify(model: PreTrainedModel) -> None:
    pixels = command.random_pixels(model.config.vision_config, model.dtype)
    ids = torch.full((len(pixels), 4), model.config.text_config.bos_token_id)
    second = {"pixel_values_second": pixels.flip(0)} if isinstance(model, AlbefForVisualReasoning) else {}
    folder.require_finite("states", model(pixels, input_ids=ids, **second).last_hidden_state)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command.argument_parser(__doc__, VARIANTS, "AlbefConfig")
    parser.add_argument("--vocab", type=Path, help="the release's vocab.txt; default: the one beside the checkpoint")
    args = parser.parse_args(argv)

    def convert_to(output: Path | None) -> Conversion:
        wishes = (args.variant, args.config, args.image_size, args.vocab)
        return _converted(args.checkpoint, *wishes, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        if conversion.processor is None:
            yield "no processor written: give --vocab"

    return command.run("convert_albef", args, convert_to, wishes=("vocab",), notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
