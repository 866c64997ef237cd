"""open_clip's model descriptions as fields of `ClipConfig`.

https://github.com/mlfoundations/open_clip keeps what weights do not tell in a JSON file: the bare description
(`{"embed_dim": ..., "vision_cfg": ..., "text_cfg": ...}`), or, beside the weights, `open_clip_config.json`, which has
it under "model_cfg" and the images' mean and deviation under "preprocess_cfg".
"""

from collections.abc import Mapping
from typing import Any


#: the file's name in folders from the Hub
FILE = "open_clip_config.json"

#: what each part may say; anything else that is set belongs to towers that are not CLIP's
KNOWN = {
    "model": "embed_dim quick_gelu init_logit_bias vision_cfg text_cfg",
    "vision_cfg": "image_size layers width head_width mlp_ratio patch_size no_ln_pre pool_type final_ln_after_pool "
    "act_kwargs norm_kwargs",
    "text_cfg": "context_length vocab_size width heads layers mlp_ratio pad_id eos_id no_causal_mask pool_type "
    "proj_type proj_bias act_kwargs norm_kwargs",
}
#: what matters to training, or to where files come from, but not to what the tensors compute
IDLE = {
    "model": "custom_text init_logit_scale nonscalar_logit_scale output_dict",
    "vision_cfg": "patch_dropout output_tokens pos_embed_type",
    "text_cfg": "output_tokens hf_tokenizer_name tokenizer_kwargs pooler_type hf_model_pretrained",  # see text_fields
}
POOLING = {"tok": "cls", "avg": "mean"}
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # as PIL numbers them


def is_description(config: Mapping[str, Any]) -> bool:
    """Whether a mapping is such a description, not fields of a configuration of hfvlm."""
    return "model_cfg" in config or ("embed_dim" in config and "vision_cfg" in config)


def model_fields(description: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ClipConfig`.

    Raises:
        ValueError: for towers that are not CLIP's ViT or ResNet and CLIP's text transformer; names the setting.
    """
    model = description.get("model_cfg", description)
    vision, text = (model.get(part) or {} for part in ("vision_cfg", "text_cfg"))
    for name, part in (("model", model), ("vision_cfg", vision), ("text_cfg", text)):
        unknown = [key for key, value in part.items() if value and key not in f"{KNOWN[name]} {IDLE[name]}".split()]
        if unknown:
            raise ValueError(f"open_clip's {name} sets {', '.join(unknown)}, which CLIP's towers here do not have")
    quick = bool(model.get("quick_gelu"))
    fields = {
        "projection_dim": model["embed_dim"],
        "text_projection_bias": bool(text.get("proj_bias")),
        "vision_config": _vision(vision, model["embed_dim"], quick),
        "text_config": _text(text, quick),
    }
    if model.get("init_logit_bias") is not None:
        fields.update(objective="sigmoid", logit_bias_init_value=float(model["init_logit_bias"]))
    return fields


def image_fields(description: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Settings of a `CLIPImageProcessorPil` that differ from CLIP's own."""
    images = description.get("preprocess_cfg") or {}
    settings = {f"image_{name}": list(images[name]) for name in ("mean", "std") if name in images}
    if "interpolation" in images:
        settings["resample"] = RESAMPLING[_one_of(images, "interpolation", RESAMPLING)]
    if "resize_mode" in images and _one_of(images, "resize_mode", ("shortest", "squash")) == "squash":
        settings.update(size={"height": image_size, "width": image_size}, do_center_crop=False)
    return settings


def text_fields(description: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `ClipProcessor` where the texts are another tokenizer's than CLIP's; empty where they are CLIP's.

    Raises:
        ValueError: texts are read in a way that the processor has no setting for; names it.
    """
    text = description.get("model_cfg", description).get("text_cfg") or {}
    told = dict(text.get("tokenizer_kwargs") or {})
    settings = {"mend_texts": True, "strip_sep_token": bool(told.pop("strip_sep_token", False))}
    if not text.get("hf_tokenizer_name"):
        told, settings = text.get("tokenizer_kwargs"), {}
    elif told.get("clean") == "whitespace":  # as without it
        del told["clean"]
    if told:
        raise ValueError(
            f"open_clip's tokenizer_kwargs are {told}: of these the processor has strip_sep_token alone, for the "
            "tokenizer that hf_tokenizer_name names"
        )
    return settings


def _vision(cfg: Mapping[str, Any], joint: int, quick: bool) -> dict[str, Any]:
    width, head, image_size = cfg.get("width", 768), cfg.get("head_width", 64), cfg.get("image_size", 224)
    if isinstance(image_size, (list, tuple)):
        if len(set(image_size)) != 1:
            raise ValueError(f"open_clip's image_size is {image_size}; the towers here take squares")
        image_size = image_size[0]
    if isinstance(cfg.get("layers"), (list, tuple)):
        return {
            "model_type": "hfvlm_resnet_tower",
            "depths": list(cfg["layers"]),
            "width": width,
            "num_attention_heads": width * 32 // head,
            "image_size": image_size,
            "output_dim": joint,
        }
    after = bool(cfg.get("final_ln_after_pool"))
    pooling = POOLING[_one_of(cfg, "pool_type", POOLING, "tok")]
    return {
        "hidden_size": width,
        "num_attention_heads": width // head,
        "image_size": image_size,
        "patch_size": cfg.get("patch_size", 16),
        "pre_norm": not cfg.get("no_ln_pre"),
        "pooling": pooling,
        "final_norm": "tokens" if pooling == "mean" and not after else "pooled",  # of one token it is the same
        **_block(cfg, width, quick),
    }


def _text(cfg: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    width, words, pad = cfg.get("width", 512), cfg.get("vocab_size", 49408), cfg.get("pad_id", 0)
    _one_of(cfg, "proj_type", ("linear",), "linear")
    pooling = _one_of(cfg, "pool_type", ("argmax", "first", "last", "eos"), "argmax")
    return {
        "vocab_size": words,
        "max_position_embeddings": cfg.get("context_length", 77),
        "hidden_size": width,
        "num_attention_heads": cfg.get("heads", 8),
        "causal": not cfg.get("no_causal_mask"),
        "pooling": pooling,
        "pad_token_id": pad,
        "bos_token_id": words - 2,
        "eos_token_id": cfg.get("eos_id", 2) if pooling == "eos" else words - 1,
        **_block(cfg, width, quick),
    }


def _block(cfg: Mapping[str, Any], width: int, quick: bool) -> dict[str, Any]:
    """What both transformers' blocks have: depth, width inside, activation, the norms' eps."""
    activation = "quick_gelu" if quick else "gelu"
    if not quick and (cfg.get("act_kwargs") or {}).get("approximate") == "tanh":
        activation = "gelu_pytorch_tanh"
    return {
        "num_hidden_layers": cfg.get("layers", 12),
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "hidden_act": activation,
        "layer_norm_eps": (cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _one_of(cfg: Mapping[str, Any], name: str, known: Any, default: str | None = None) -> str:
    value = cfg.get(name, default)
    if value not in known:
        raise ValueError(f"open_clip's {name} is {value!r}; the towers here know {', '.join(known)}")
    return value
