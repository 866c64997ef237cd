"""ALBEF checkpoints -> hfvlm folders.

    python conversion/convert_albef.py --checkpoint ALBEF.pth --output albef --vocab vocab.txt
    python conversion/convert_albef.py --checkpoint mscoco.pth --output albef-coco --image-size 384
    python conversion/convert_albef.py --checkpoint ALBEF.pth --output albef-vqa --head answering --image-size 384

Reads the original release (https://github.com/salesforce/ALBEF): pretraining, retrieval, question answering,
entailment, NLVR2 and the text assignment before it; and LAVIS's feature extractor. `--head answering` makes of a
pretraining checkpoint, or of an hfvlm folder of one, what question answering starts from. Sizes come from the weights;
heads (64 wide unless told), normalisation and activation from `--variant` or `--config`, a JSON file with fields of
`hfvlm.AlbefConfig`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import BertTokenizer, BlipImageProcessorPil, PreTrainedModel

from hfvlm.conversion import albef_rules, command, folder, images
from hfvlm.conversion.answering_start import answering_start, is_start
from hfvlm.conversion.blip_processor import vocabulary_of
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.fusion_rules import class_fields
from hfvlm.conversion.rules import Rule, apply, invert
from hfvlm.models.albef.answering_albef import AlbefForVisualQuestionAnswering
from hfvlm.models.albef.assignment_albef import AlbefForTextAssignment
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
    "answering": Head(AlbefForVisualQuestionAnswering, albef_rules.ANSWERING),
    "entailment": Head(AlbefForImageClassification, albef_rules.ENTAILMENT),
    "reasoning": Head(AlbefForVisualReasoning, albef_rules.reasoning),
    "assignment": Head(AlbefForTextAssignment, albef_rules.assignment),
    "features": Head(AlbefModel, albef_rules.FEATURES, "text_encoder.bert."),
}


#: those whose fusion layers are there twice
PAIRED = ("reasoning", "assignment")


def head_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The head that a checkpoint's keys are of, a key of `HEADS`.

    Raises:
        ValueError: none of those.
    """
    prefixes = {key.partition(".")[0] for key in tensors}
    if "text_decoder" in prefixes:
        return "answering"
    if "ta_head" in prefixes:
        return "assignment"
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
    head: str | None = None,
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
        head: "answering": of a pretraining checkpoint, the head that answers, whose decoder starts as the layers that
            fuse; None: the checkpoint's own.
        output: folder to save the model in, with its processor if there is a vocabulary.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype.

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` or `vocab` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, not ALBEF, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted(checkpoint, variant, config, image_size, vocab, head, output, verify).model


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


def _converted(checkpoint, variant, config, image_size, vocab, head, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    if is_start(checkpoint, AlbefConfig, head, (variant, config, image_size, vocab)):
        conversion = answering_start(checkpoint)
    else:
        conversion = _head(command.open_source(checkpoint), variant, config, image_size, vocab, head)
    conversion.model.eval()
    if verify:
        _verify(conversion.model)
    if output is not None:
        command.save(output, conversion.model, conversion.processor)
    return conversion


def _head(source: Checkpoint, variant, config, image_size, vocab, wanted) -> Conversion:
    tensors, name = source.tensors, head_of(source.tensors)
    words = vocabulary_of(vocab, source.folder)
    if wanted not in (None, name):
        if (wanted, name) != ("answering", "pretraining"):
            raise ValueError(f"head 'answering' is made of a pretraining checkpoint, not {wanted!r} of one for {name}")
        text = albef_rules.release_fields(tensors, words, HEADS[name].text)["text_config"]
        tensors, name = albef_rules.for_answering(tensors, text["fusion_layer"]), wanted
    head = HEADS[name]
    fields = albef_rules.release_fields(tensors, words, head.text, paired=name in PAIRED)
    fields.update(class_fields(name, fields))
    built = command.merged_config(AlbefConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS)
    model = head.cls(built)
    dropped = folder.fill(model, _rules(head, tensors), tensors)
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
    outputs = model(pixels, input_ids=ids, **second)
    answers = isinstance(model, AlbefForVisualQuestionAnswering)
    folder.require_finite("outputs", outputs.logits if answers else outputs.last_hidden_state)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command.argument_parser(__doc__, VARIANTS, "AlbefConfig")
    parser.add_argument("--vocab", type=Path, help="the release's vocab.txt; default: the one beside the checkpoint")
    parser.add_argument("--head", choices=("answering",), help="what to make of a pretraining checkpoint")
    args = parser.parse_args(argv)

    def convert_to(output: Path | None) -> Conversion:
        wishes = (args.variant, args.config, args.image_size, args.vocab, args.head)
        return _converted(args.checkpoint, *wishes, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        if conversion.processor is None:
            yield "no processor written: give --vocab"

    return command.run("convert_albef", args, convert_to, wishes=("vocab", "head"), notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
