"""BLIP checkpoints -> hfvlm folders, and back to transformers' format.

    python conversion/convert_blip.py --checkpoint model_base_caption.pth --output blip-captioner --vocab vocab.txt
    python conversion/convert_blip.py --checkpoint blip-captioner --output in-tree-folder --to transformers
    python conversion/convert_blip.py --checkpoint any_blip.pth --output tower --part vision --image-size 480

Reads the original release (https://github.com/salesforce/BLIP): captioning, pretraining, retrieval, question
answering, NLVR2, features (LAVIS's, too); folders of transformers' `BlipForConditionalGeneration`,
`BlipForImageTextRetrieval` and `BlipForQuestionAnswering`; and, for the way back, hfvlm folders.
`--head answering` makes of a pretraining checkpoint, or of an hfvlm folder of one, what question answering starts
from. Sizes come from the weights; heads (64 wide unless told), normalisation and activation from `--variant` or
`--config`, a JSON file with fields of `hfvlm.BlipConfig`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from hfvlm.conversion import blip_rules, command, folder
from hfvlm.conversion.answering_start import answering_start, is_start
from hfvlm.conversion.blip_heads import HEADS, head_of
from hfvlm.conversion.blip_processor import carried_processor, in_tree_processor, release_processor, vocabulary_of
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.fusion_rules import class_fields
from hfvlm.conversion.rules import apply, invert
from hfvlm.encoders.vit import VitTower
from hfvlm.fusion import FusionPreTrainedModel
from hfvlm.models.blip.answering_blip import BlipForVisualQuestionAnswering
from hfvlm.models.blip.classes_blip import BlipForVisualReasoning
from hfvlm.models.blip.configuration_blip import VARIANTS, BlipConfig
from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration
from hfvlm.models.blip.pretraining_blip import BlipForPreTraining
from hfvlm.models.blip.processing_blip import BlipProcessor


#: what to call the towers in an error
TOWERS = {"vision_config": "vision tower", "text_config": "text tower"}
#: what transformers' retrieval model has no place for
_TRAINING_ONLY = ("teacher_", "image_queue.", "text_queue.", "temp")


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
    """The head that a checkpoint of the original release (or of LAVIS, or of transformers) is of.

    Args:
        checkpoint: a file, a folder, a state dict, or a transformers model.
        variant: a published size, a key of `hfvlm.models.blip.configuration_blip.VARIANTS`.
        config: fields of `BlipConfig`, or a JSON file of them, for what the shapes do not tell.
        image_size: pixels a side; the position table is resized if the checkpoint's is another.
        vocab: BERT's `vocab.txt` as the release used it; looked for beside the checkpoint if left out.
        head: "answering": of a pretraining checkpoint, the head that answers; None: the checkpoint's own.
        output: folder to save the model in, with its processor if there is a vocabulary or tokenizer.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype. A pretraining checkpoint's is saved so that every
        other head loads from its folder. A release's captioner searches with beams as the release does
        (`config.release_beam_search`).

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` or `vocab` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, not BLIP, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted("model", checkpoint, variant, config, image_size, vocab, head, output, verify).model


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
    return _converted("vision", checkpoint, variant, config, image_size, None, None, output, verify).model


def to_transformers(model: PreTrainedModel) -> transformers.PreTrainedModel:
    """The same captioner, retrieval model or model that answers as transformers' own class, in the same dtype.

    Raises:
        ValueError: the head, or its image tower, has no place there.
    """
    config = blip_rules.in_tree_config(model.config)
    vision, text = model.config.vision_config, model.config.text_config
    head = next((head for head in HEADS.values() if head.in_tree and isinstance(model, head.cls)), None)
    if head is None:
        raise _no_class_there(type(model).__name__)
    if head is HEADS["answering"] and vision.hidden_size != text.hidden_size:
        raise ValueError(
            "transformers' BLIP answers with towers of one width, but vision_config.hidden_size is "
            f"{vision.hidden_size} and text_config.hidden_size {text.hidden_size}"
        )
    theirs = head.theirs(config)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(_TRAINING_ONLY)}
    folder.fill(theirs, invert(head.in_tree), kept)
    if model.can_generate():
        for part in (theirs, theirs.text_decoder):  # the first is saved, the second is what its generate() asks
            folder.carry_generation(model.generation_config.to_diff_dict(), part)
    return theirs.eval()


def _no_class_there(name: str) -> ValueError:
    return ValueError(
        f"transformers has no class for {name}: convert a captioner, a retrieval model, or one that answers"
    )


def to_release_keys(tensors: Mapping[str, torch.Tensor], head: str = "captioning") -> dict[str, torch.Tensor]:
    """A head's tensors (weights, gradients) under the keys of the original release; what that stores twice, once."""
    return apply(invert(HEADS[head].release), tensors).tensors


def _converted(part, checkpoint, variant, config, image_size, vocab, head, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    if part == "model" and is_start(checkpoint, BlipConfig, head, (variant, config, image_size, vocab)):
        conversion = answering_start(checkpoint)
    else:
        build = _vision if part == "vision" else _head
        conversion = build(command.open_source(checkpoint), variant, config, image_size, vocab, head)
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


def _head(source: Checkpoint, variant, config, image_size, vocab, wanted) -> Conversion:
    released, words = _is_release(source), None
    name = head_of(source.tensors)
    if wanted not in (None, name):
        if (wanted, name) != ("answering", "pretraining"):
            raise ValueError(f"head 'answering' is made of a pretraining checkpoint, not {wanted!r} of one for {name}")
        name = wanted
    head = HEADS[name]
    if released:
        words = vocabulary_of(vocab, source.folder)
        fields, rules = blip_rules.release_fields(source.tensors, words, head.text), head.release
        fields.update(class_fields(name, fields))
    elif head.in_tree is None:
        raise ValueError(f"transformers has no BLIP for {name}: these keys are of something else")
    else:
        fields, rules = blip_rules.in_tree_fields(source.config), head.in_tree
        if name != "captioning":
            fields["momentum"] = None
        if name == "answering":
            fields["answers_read_padding"] = True
    model = head.cls(_config(fields, variant, config, image_size))
    dropped = folder.fill(model, rules, source.tensors)
    if released:
        processor = None if words is None else release_processor(words, model.config)
    else:
        if head.cls.can_generate():
            folder.carry_generation(source.generation or {}, model)
        processor = carried_processor(source.folder, model.config)
    return Conversion(model, processor, dropped)


def _vision(source: Checkpoint, variant, config, image_size, vocab, wanted) -> Conversion:
    if _is_release(source):
        fields, rules = blip_rules.release_fields(source.tensors, None), blip_rules.RELEASE_VISION
    else:
        fields, rules = blip_rules.in_tree_fields(source.config), blip_rules.IN_TREE_VISION
    fields = {"vision_config": fields["vision_config"]}  # the text tower may be any head's
    tower = VitTower(_config(fields, variant, config, image_size).vision_config)
    return Conversion(tower, None, folder.fill(tower, rules, source.tensors))


def _config(fields: dict[str, Any], variant: str | None, config: ConfigLike, image_size: int | None) -> BlipConfig:
    return command.merged_config(BlipConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS)


@torch.no_grad()
def _verify(model: PreTrainedModel) -> None:
    pixels = command.random_pixels(getattr(model.config, "vision_config", model.config), model.dtype)
    if isinstance(model, FusionPreTrainedModel) and not model.can_generate():
        ids = torch.full((len(pixels), 4), model.config.enc_token_id)
        second = {"pixel_values_second": pixels.flip(0)} if isinstance(model, BlipForVisualReasoning) else {}
        folder.require_finite("states", model(pixels, input_ids=ids, **second).last_hidden_state)
        return
    asked = isinstance(model, BlipForVisualQuestionAnswering)
    outputs = model(pixels, torch.full((len(pixels), 4), model.config.enc_token_id)) if asked else model(pixels)
    if asked or isinstance(model, BlipForConditionalGeneration):
        folder.require_finite("logits", outputs.logits)
    else:
        folder.require_finite("image tokens", outputs.last_hidden_state)


def _opened(path: Path) -> Conversion | None:
    """A model and its processor from an hfvlm folder; None if `path` is something else.

    Raises:
        ValueError: the folder's head has no class in transformers; a pretraining head's gives its captioner.
    """
    if command.model_type_of(path) != BlipConfig.model_type:
        return None
    named = BlipConfig.from_pretrained(path).architectures or []
    classes = {head.cls.__name__: head.cls for head in HEADS.values() if head.in_tree is not None}
    classes[BlipForPreTraining.__name__] = BlipForConditionalGeneration  # all of whose weights it holds
    cls = next((classes[name] for name in named if name in classes), None)
    if cls is None:
        raise _no_class_there(" or ".join(named) or f"{path}, whose config.json names no class")
    model = cls.from_pretrained(path).eval()
    processor = BlipProcessor.from_pretrained(path) if (path / "tokenizer.json").is_file() else None
    return Conversion(model, processor, {})


def _in_tree(conversion: Conversion) -> Conversion:
    processor = None if conversion.processor is None else in_tree_processor(conversion.processor)
    return Conversion(to_transformers(conversion.model), processor, conversion.dropped)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command.argument_parser(__doc__, VARIANTS, "BlipConfig")
    parser.add_argument("--vocab", type=Path, help="the release's vocab.txt; default: the one beside the checkpoint")
    parser.add_argument("--part", choices=("model", "vision"), default="model", help="all, or the image tower")
    parser.add_argument("--head", choices=("answering",), help="what to make of a pretraining checkpoint")
    args = parser.parse_args(argv)
    if args.to == "transformers" and args.part == "vision":
        parser.error("--to transformers writes a whole model: leave --part out")

    def convert_to(output: Path | None) -> Conversion:
        wishes = (args.variant, args.config, args.image_size, args.vocab, args.head)
        return _converted(args.part, args.checkpoint, *wishes, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        if args.to == "transformers" and conversion.model.config.release_beam_search:
            yield "release_beam_search is not carried over: transformers' own beam search can give other captions"
        if conversion.processor is None and args.part == "model":
            yield "no processor written: give --vocab, or a folder with a tokenizer"

    return command.run("convert_blip", args, convert_to, _opened, _in_tree, wishes=("vocab", "head"), notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
