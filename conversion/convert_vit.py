"""ViT checkpoints -> hfvlm folders, and back to transformers' format.

    python conversion/convert_vit.py --checkpoint timm_vit.safetensors --output vit
    python conversion/convert_vit.py --checkpoint S_16-i21k.npz --output vit --image-size 384 --verify
    python conversion/convert_vit.py --checkpoint vit --output in-tree-folder --to transformers

Reads timm's VisionTransformer and its hybrids (`.pth`, `.safetensors`), the `.npz` files of
https://github.com/google-research/vision_transformer (the paper's, AugReg's), folders of transformers' ViT, and hfvlm
folders (for another image size). Sizes come from the weights; heads (the published width's, else 64 wide),
normalisation, activation and the groups of a hybrid's norms from `--variant` or `--config`, a JSON file with fields of
`hfvlm.VitConfig`. timm's own `config.json` beside its weights tells how images are prepared and the classes' names.
The activation is the exact GELU, as timm and transformers have it; that of the `.npz` files is its approximation by
tanh, which they were trained with.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ViTImageProcessorPil

from hfvlm.conversion import command, folder, images, timm_description, vit_rules
from hfvlm.conversion.checkpoint import Checkpoint
from hfvlm.conversion.command import ConfigLike, Conversion, Source
from hfvlm.conversion.rules import Drop, invert
from hfvlm.models.vit.configuration_vit import VARIANTS, VitConfig
from hfvlm.models.vit.modeling_vit import (
    VitForImageClassification,
    VitForMaskedImageModeling,
    VitModel,
    VitPreTrainedModel,
)
from hfvlm.models.vit.processing_vit import VitProcessor


#: what to call the tower in an error
TOWERS = {"vision_config": "tower"}


def convert(
    checkpoint: Source,
    *,
    variant: str | None = None,
    config: ConfigLike = None,
    image_size: int | None = None,
    output: str | Path | None = None,
    verify: bool = False,
) -> VitPreTrainedModel:
    """A ViT from a checkpoint of timm, of the original release, or of transformers.

    Args:
        checkpoint: a file, a folder, a state dict, or a transformers model.
        variant: a published size, a key of `hfvlm.models.vit.configuration_vit.VARIANTS`.
        config: fields of `VitConfig`, or a JSON file of them, for what the shapes do not tell.
        image_size: pixels a side; the position table is resized if the checkpoint's is another.
        output: folder to save the model in, with its processor.
        verify: run the model once and refuse outputs that are not finite.

    Returns:
        the model, in evaluation mode and the checkpoint's dtype: with the head that the checkpoint has, a `VitModel`
        if it has none.

    Raises:
        FileNotFoundError, FileExistsError: `checkpoint` is not there; `output` is, and not empty.
        ValueError: the checkpoint is unreadable, unsafe, no ViT, or does not fit (`KeyMismatch` lists the keys).
    """
    return _converted(checkpoint, variant, config, image_size, output, verify).model


def to_transformers(model: VitPreTrainedModel) -> transformers.PreTrainedModel:
    """The same model as transformers' own class, in the same dtype.

    Masked image modelling becomes a `ViTModel` without its head: transformers' predicts pixels.

    Raises:
        ValueError: the model's tower, or the layer before its classifier, has no place there.
    """
    return _to_transformers(model)[0]


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


def _build(source: Checkpoint, *wishes: Any) -> Conversion:
    kind, tensors = (source.config or {}).get("model_type"), source.tensors
    if kind == VitConfig.model_type:
        return _own(source, *wishes)
    if any(key.endswith("embeddings.cls_token") for key in tensors):
        if kind != "vit":
            raise ValueError(
                "weights in transformers' format need their config.json of model_type 'vit': give the folder, "
                f"not the file alone (found model_type {kind!r})"
            )
        return _in_tree(source, *wishes)
    flax = any(key.endswith("embedding/kernel") for key in tensors)
    if not flax and "patch_embed.proj.weight" not in tensors:
        raise ValueError(
            "not a ViT checkpoint: expected patch_embed.proj.weight (timm), embedding/kernel (original release) or "
            f"embeddings.cls_token (transformers), found {', '.join(list(tensors)[:3])}, ..."
        )
    return _release(source, flax, *wishes)


def _config(fields: Mapping[str, Any], variant, config, image_size) -> VitConfig:
    return command.merged_config(VitConfig, VARIANTS, fields, variant, config, image_size, towers=TOWERS)


def _release(source: Checkpoint, flax: bool, *wishes: Any) -> Conversion:
    tensors = vit_rules.flax_tensors(source.tensors) if flax else _with_biases(source.tensors, ("attn.qkv",))
    fields, description = vit_rules.release_fields(tensors, flax), None
    if flax and (heads := vit_rules.flax_heads(source.tensors)):
        fields["vision_config"]["num_attention_heads"] = heads
    if not flax and (description := timm_description.beside(source.folder)) is not None:
        told = timm_description.model_fields(description, fields.get("num_labels"))
        fields = {**fields, **told, "vision_config": {**fields["vision_config"], **told["vision_config"]}}
    config = _config(fields, *wishes)
    rules = vit_rules.flax_rules(config, tensors) if flax else vit_rules.timm_rules(config)
    model = (VitForImageClassification if "head.weight" in tensors else VitModel)(config)
    dropped = folder.fill(model, rules, tensors)
    seen = ViTImageProcessorPil()
    if description is not None:
        seen = timm_description.image_processor(description, config.vision_config.image_size)
    return Conversion(model, _processor(config, seen), dropped)


def _in_tree(source: Checkpoint, *wishes: Any) -> Conversion:
    tensors = _with_biases(source.tensors, ("q_proj", "k_proj", "v_proj", "attention.query", "key", "value"))
    saved = any(".attention.attention.query." in key for key in tensors)
    prefix = "vit." if "vit.embeddings.cls_token" in tensors else ""
    masked = any(key.startswith("decoder.") for key in tensors)
    classifier = "classifier.weight" in tensors
    fields = vit_rules.in_tree_fields(source.config, pooler="pooler.dense.weight" in tensors)
    seen = images.stored(ViTImageProcessorPil, source.folder) or ViTImageProcessorPil()
    fields.update(image_mean=list(seen.image_mean), image_std=list(seen.image_std))
    config = _config(fields, *wishes)
    if masked:
        head, ends = VitForMaskedImageModeling, vit_rules.IN_TREE_DECODER
    elif classifier:
        head, ends = VitForImageClassification, vit_rules.IN_TREE_CLASSIFIER
    else:
        head, ends = VitModel, vit_rules.IN_TREE_POOLER
    model = head(config)
    dropped = folder.fill(model, (*vit_rules.in_tree_rules(config, prefix, saved, masked), *ends), tensors)
    return Conversion(model, _processor(config, seen), dropped)


def _own(source: Checkpoint, *wishes: Any) -> Conversion:
    config = _config(command.own_fields(VitConfig, source, TOWERS), *wishes)
    if "colour_head.weight" in source.tensors:
        head = VitForMaskedImageModeling
    else:
        head = VitForImageClassification if "classifier.weight" in source.tensors else VitModel
    model = head(config)
    dropped = folder.fill(model, vit_rules.own_rules(config), source.tensors)
    seen = images.stored(ViTImageProcessorPil, source.folder) or ViTImageProcessorPil()
    return Conversion(model, _processor(config, seen), dropped)


def _with_biases(tensors: Mapping[str, torch.Tensor], layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors, with zeros for biases that attention may have been built without; a bias of 0 changes nothing."""
    endings = tuple(f"{layer}.weight" for layer in layers)
    weights = {key: value for key, value in tensors.items() if key.endswith(endings)}
    if any(key.replace("weight", "bias") in tensors for key in weights):
        return dict(tensors)
    return {**tensors, **{key.replace("weight", "bias"): value[:, 0] * 0 for key, value in weights.items()}}


def _processor(config: VitConfig, seen: ViTImageProcessorPil) -> VitProcessor:
    """The source's image processor, for the model's size and with its mean and deviation."""
    tower = config.vision_config
    mean, std = (
        [value] * tower.num_channels if isinstance(value, float) else list(value)
        for value in (config.image_mean, config.image_std)
    )
    settings = images.fitted(seen, tower.image_size).to_dict()
    return VitProcessor(ViTImageProcessorPil.from_dict({**settings, "image_mean": mean, "image_std": std}))


def _to_transformers(model: VitPreTrainedModel) -> tuple[transformers.PreTrainedModel, dict[str, str]]:
    """The model in transformers' class, and the keys that have no place there."""
    theirs, prefix, left_out = vit_rules.in_tree_config(model.config), "", ()
    if isinstance(model, VitForImageClassification):
        if model.pre_logits is not None:
            raise ValueError(
                "transformers has no layer before its classifier; this model's representation_size is set"
            )
        built, prefix = transformers.ViTForImageClassification(theirs), "vit."
        ends = vit_rules.IN_TREE_CLASSIFIER
    elif isinstance(model, VitForMaskedImageModeling):
        built, ends = transformers.ViTModel(theirs, add_pooling_layer=False), ()
        reason = "transformers' masked image modelling predicts pixels: only the features go there"
        left_out = (Drop("mask_token", reason), Drop("colour_head.{p}", reason))
    else:
        built = transformers.ViTModel(theirs, add_pooling_layer=model.pre_logits is not None)
        ends = vit_rules.IN_TREE_POOLER
    rules = invert((*vit_rules.in_tree_rules(model.config, prefix), *ends))
    return built.eval(), folder.fill(built, (*rules, *left_out), model.state_dict())


@torch.no_grad()
def _verify(model: VitPreTrainedModel) -> None:
    outputs = model(command.random_pixels(model.config.vision_config, model.dtype))
    if isinstance(model, VitModel):
        folder.require_finite("features", outputs.last_hidden_state)
        folder.require_finite("pooled features", outputs.pooler_output)
    else:
        folder.require_finite("logits", outputs.logits)


def _opened(path: Path) -> Conversion | None:
    """A model and its processor from an hfvlm folder; None if `path` is something else."""
    if command.model_type_of(path) != VitConfig.model_type:
        return None
    return _own(command.open_source(path), None, None, None)


def _back(conversion: Conversion) -> Conversion:
    model, dropped = _to_transformers(conversion.model)
    return Conversion(model, conversion.processor.image_processor, {**conversion.dropped, **dropped})


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = command.argument_parser(__doc__, VARIANTS, "VitConfig").parse_args(argv)

    def convert_to(output: Path | None) -> Conversion:
        return _converted(args.checkpoint, args.variant, args.config, args.image_size, output, args.verify)

    def notes(conversion: Conversion) -> Iterator[str]:
        file = args.checkpoint
        beside = file if file.is_dir() else file.parent
        if file.suffix == ".npz" or command.model_type_of(file) is not None:
            return
        tower = conversion.model.config.vision_config
        if tower.pre_norm and tower.hidden_act == "gelu" and args.config is None:
            yield (
                "norms of eps 1e-5 and the exact GELU, as timm's models of CLIP's family: if the weights were trained "
                'with QuickGELU, as OpenAI\'s, give --config with {"vision_config": {"hidden_act": "quick_gelu"}}'
            )
        if timm_description.beside(beside) is None:
            yield (
                "images are squashed, their mean and deviation 0.5, as the paper's: if the weights are timm's, lay "
                "its config.json beside them, which tells how they are prepared, and the classes' names"
            )

    return command.run("convert_vit", args, convert_to, _opened, _back, notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
