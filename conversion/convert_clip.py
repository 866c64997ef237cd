"""CLIP checkpoints -> hfvlm folders, and back to transformers' format.

    python conversion/convert_clip.py --checkpoint ViT-B-32.pt --vocab bpe_simple_vocab_16e6.txt.gz --output clip
    python conversion/convert_clip.py --checkpoint open_clip_pytorch_model.bin --config ViT-B-32.json --output clip
    python conversion/convert_clip.py --checkpoint clip --output in-tree-folder --to transformers

Reads the archives and state dicts of https://github.com/openai/CLIP, the weights and training checkpoints of
https://github.com/mlfoundations/open_clip, folders of transformers' CLIP, and hfvlm folders (for another image size).
An archive's program is not run: its tensors are read. Sizes come from the weights; heads (64 wide unless told) and
what else weights do not tell from `--config`: a JSON file with fields of `hfvlm.ClipConfig`, or open_clip's own, which
is also found beside the checkpoint. What neither tells is taken to be OpenAI's, and said. Texts need the merges file
of the original, or a folder with a tokenizer, as `--vocab` or beside the checkpoint; without one, the model is written
with its image processor alone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from hfvlm.conversion import clip_processor, clip_rules, command, folder, open_clip
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.rules import invert
from hfvlm.models.clip.configuration_clip import VARIANTS, ClipConfig
from hfvlm.models.clip.modeling_clip import (
    ClipForImageClassification,
    ClipModel,
    ClipPreTrainedModel,
    ClipTextModel,
    ClipVisionModel,
)
from hfvlm.models.clip.processing_clip import ClipProcessor


IN_TREE = ("clip", "clip_vision_model", "clip_text_model")
ADVICE = "if this is open_clip's, give its model JSON as --config FILE"
TOWERS = {"vision_config": "vision tower", "text_config": "text tower"}
#: ours -> transformers' class of the same head, and which part of its configuration that is made of
BACK = {
    ClipModel: (transformers.CLIPModel, None),
    ClipForImageClassification: (transformers.CLIPForImageClassification, None),
    ClipVisionModel: (transformers.CLIPVisionModelWithProjection, "vision_config"),
    ClipTextModel: (transformers.CLIPTextModelWithProjection, "text_config"),
}


def convert(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    vocab: str | Path | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> ClipPreTrainedModel:
    """A CLIP from a checkpoint of OpenAI, of open_clip, or of transformers.

    Args:
        checkpoint: a file, a folder, a state dict, or a transformers model.
        variant: a published size, a key of `hfvlm.models.clip.configuration_clip.VARIANTS`.
        config: fields of `ClipConfig` or open_clip's description of a model, or a JSON file of either, for what the
            shapes do not tell.
        image_size: pixels a side; the position table is resized if the checkpoint's is another.
        vocab: the original's merges file, or a folder with a tokenizer; by default what lies beside the checkpoint.
        output: folder to save the model in, with its processor, or without a vocabulary its image processor.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype, the wider where it mixes two: the head that the
        checkpoint has.

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` or `vocab` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, no CLIP, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted(checkpoint, variant, config, image_size, vocab, output, verify).model


def to_transformers(model: ClipPreTrainedModel) -> transformers.PreTrainedModel:
    """The same model as transformers' own class, in the same dtype.

    Raises:
        ValueError: the model has a tower, or something at its ends, that has no place there.
    """
    theirs, part = BACK[type(model)]
    config = clip_rules.in_tree_config(model.config)
    built = theirs(config if part is None else getattr(config, part))
    folder.fill(built, invert(clip_rules.in_tree_rules()), model.state_dict())
    return built.eval()


def _converted(checkpoint, variant, config, image_size, vocab, output, verify) -> Conversion:
    if output is not None:
        folder.check_output(output)
    conversion = _build(command.open_source(checkpoint), variant, config, image_size, vocab)
    conversion.model.eval()
    if verify:
        _verify(conversion.model)
    if output is not None:
        command.save(output, conversion.model, conversion.processor)
    return conversion


def _build(source: Checkpoint, variant, config: ConfigLike, image_size, vocab) -> Conversion:
    kind, tensors, images = (source.config or {}).get("model_type"), source.tensors, {}
    texts: dict[str, Any] = {}
    config = command.read_config(config)
    release = kind not in (*IN_TREE, ClipConfig.model_type)
    if config is None and variant is None and release and source.folder is not None:
        beside = source.folder / open_clip.FILE
        config = command.read_config(beside) if beside.is_file() else None
    described = config is not None and open_clip.is_description(config)
    if described:
        description, config = config, open_clip.model_fields(config)
        texts = open_clip.text_fields(description)
        images = open_clip.image_fields(description, image_size or config["vision_config"]["image_size"])
    if kind == ClipConfig.model_type:
        head, fields, rules = _own(source)
    elif kind in IN_TREE:
        head, fields = _in_tree_head(tensors), clip_rules.in_tree_fields(source.config)
        rules = clip_rules.in_tree_rules()
    else:
        tensors = _release_tensors(tensors)
        head, fields, rules = ClipModel, clip_rules.release_fields(tensors), None
    built = command.merged_config(
        ClipConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS, advice=ADVICE if release else None
    )
    guesses = {}
    if release and not described:
        guesses = clip_rules.guesses(built, fields, (VARIANTS.get(variant, {}), config or {}))
    if rules is None:
        rules = clip_rules.release_rules(built, clip_rules.text_prefix(tensors))
    model = head(built)
    dropped = folder.fill(model, rules, tensors)
    if kind == ClipConfig.model_type and vocab is None:
        processor = clip_processor.own_processor(built, source.folder)
    else:
        processor = clip_processor.processor_for(built, source.folder, vocab, images, texts)
    if processor is None and head is not ClipTextModel:
        processor = clip_processor.image_processor_for(built, source.folder, images)
    return Conversion(model, processor, dropped, guesses)


def _release_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    words = f"{clip_rules.text_prefix(tensors)}token_embedding.weight"
    if "visual.conv1.weight" in tensors and words in tensors:
        return clip_rules.release_tensors(tensors)
    if any(key.startswith(("vision_model.", "text_model.")) for key in tensors):
        raise ValueError(
            "weights in transformers' format need their config.json, whose model_type is one of "
            f"{', '.join(IN_TREE)}: give the folder, not the file alone"
        )
    raise ValueError(
        "not a CLIP checkpoint: expected visual.conv1.weight and token_embedding.weight (OpenAI, open_clip), found "
        f"{', '.join(list(tensors)[:3])}, ..."
    )


def _in_tree_head(tensors: Mapping[str, torch.Tensor]) -> type[ClipPreTrainedModel]:
    """Our class for what a checkpoint of transformers has."""
    if "classifier.weight" in tensors:
        return ClipForImageClassification
    whole = {"visual_projection.weight": ClipVisionModel, "text_projection.weight": ClipTextModel}
    found = [head for key, head in whole.items() if key in tensors]
    if not found:
        raise ValueError(
            "a tower of transformers' CLIP without its projection: give the whole model, or the tower's "
            "...WithProjection"
        )
    return found[0] if len(found) == 1 else ClipModel


def _own(source: Checkpoint) -> tuple[type[ClipPreTrainedModel], dict[str, Any], tuple]:
    tensors = source.tensors
    if "classifier.weight" in tensors:
        head = ClipForImageClassification
    elif "logit_scale" in tensors:
        head = ClipModel
    else:
        head = ClipTextModel if "text_projection.weight" in tensors else ClipVisionModel
    return head, command.own_fields(ClipConfig, source, TOWERS), clip_rules.own_rules()


@torch.no_grad()
def _verify(model: ClipPreTrainedModel) -> None:
    text = model.config.text_config
    batch = {}
    if not isinstance(model, ClipTextModel):
        batch["pixel_values"] = command.random_pixels(model.config.vision_config, model.dtype)
    if isinstance(model, (ClipModel, ClipTextModel)):
        batch["input_ids"] = torch.arange(text.max_position_embeddings)[None] % text.vocab_size
    outputs = model(**batch)
    for name in ("logits", "image_embeds", "text_embeds", "logits_per_image"):
        if outputs.get(name) is not None:
            folder.require_finite(name.replace("_", " "), outputs[name])


def _opened(path: Path) -> Conversion | None:
    """A model and its processor from an hfvlm folder; None if `path` is something else."""
    if command.model_type_of(path) != ClipConfig.model_type:
        return None
    return _build(command.open_source(path), None, None, None, None)


def _back(conversion: Conversion) -> Conversion:
    processor = conversion.processor
    theirs = to_transformers(conversion.model)
    if isinstance(processor, ClipProcessor):
        processor = clip_processor.in_tree_processor(processor)
    return Conversion(theirs, processor, conversion.dropped)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command.argument_parser(__doc__, VARIANTS, "ClipConfig, or open_clip's own")
    parser.add_argument("--vocab", type=Path, help="the original's merges file, or a folder with a tokenizer")
    args = parser.parse_args(argv)

    def convert_to(output: Path | None) -> Conversion:
        return _converted(args.checkpoint, args.variant, args.config, args.image_size, args.vocab, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        if not isinstance(conversion.processor, ClipProcessor):
            yield clip_processor.what_is_missing(conversion.model.config)
        for part, fields in conversion.guesses.items():
            yield f"guessed, as OpenAI's: {part}: {', '.join(f'{name}={value!r}' for name, value in fields.items())}"
        if conversion.guesses:
            yield f"{ADVICE}; fields of --config are taken at their word"

    return command.run("convert_clip", args, convert_to, _opened, _back, wishes=("vocab",), notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
