"""CLIP configuration and its published sizes."""

import math

from huggingface_hub.dataclasses import strict

from hfvlm.encoders.configuration import VitTowerConfig
from hfvlm.two_tower_config import TwoTowerConfig


#: what CLIP's ViT has otherwise than the plain one
CLIP_VIT = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_bias": False,
    "pre_norm": True,
    "final_norm": "pooled",
}


def _vit(width: int, layers: int, patch: int, image: int = 224, joint: int = 512, text: int = 512) -> dict:
    return {
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "patch_size": patch,
            "image_size": image,
        },
        "text_config": {"hidden_size": text, "intermediate_size": 4 * text, "num_attention_heads": text // 64},
        "projection_dim": joint,
    }


def _resnet(depths: tuple[int, ...], joint: int, image: int, width: int = 64, text: int = 512) -> dict:
    return {
        "vision_config": {
            "model_type": "hfvlm_resnet_tower",
            "depths": depths,
            "width": width,
            "image_size": image,
            "num_attention_heads": width // 2,
            "output_dim": joint,
        },
        "text_config": {"hidden_size": text, "intermediate_size": 4 * text, "num_attention_heads": text // 64},
        "projection_dim": joint,
    }


#: Published sizes, and "tiny" for tests.
VARIANTS = {
    "vit_b_32": _vit(768, 12, 32),
    "vit_b_16": _vit(768, 12, 16),
    "vit_l_14": _vit(1024, 24, 14, joint=768, text=768),
    "vit_l_14_336": _vit(1024, 24, 14, image=336, joint=768, text=768),
    "rn50": _resnet((3, 4, 6, 3), 1024, 224),
    "rn101": _resnet((3, 4, 23, 3), 512, 224),
    "rn50x4": _resnet((4, 6, 10, 6), 640, 288, width=80, text=640),
    "rn50x16": _resnet((6, 8, 18, 8), 768, 384, width=96, text=768),
    "rn50x64": _resnet((3, 15, 36, 10), 1024, 448, width=128, text=1024),
    "tiny": {
        "vision_config": {
            "hidden_size": 40,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        "text_config": {
            "vocab_size": 64,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "bos_token_id": 62,
            "eos_token_id": 63,
        },
        "projection_dim": 32,
    },
}


@strict
class ClipConfig(TwoTowerConfig):
    """Configuration of every CLIP head; the fields that all two-tower models have are `TwoTowerConfig`'s.

    Args:
        vision_config: a `VitTowerConfig` or `ResNetTowerConfig` in CLIP's form (a dict is completed to that), or
            another tower's config by `model_type`.
        text_config: a `ClipTextTowerConfig`, or a `BertTowerConfig` by `model_type`.
        logit_scale_init_value: logarithm of the similarities' scale in a fresh model. "auto": that of 1 / 0.07, or of
            10 for the sigmoid objective, as SigLIP has it.
        max_logit_scale: the scale is held between 1 and this while it is trained; None: free. "auto": 100, or free for
            the sigmoid objective, which knows no limit.
        logit_bias_init_value: what is added to every similarity in a fresh model; None: no bias. "auto": none, or
            SigLIP's -10 for the sigmoid objective: a batch has far more pairs that do not match than pairs that do.

    ```python
    >>> ClipConfig.variant("vit_b_32", vision_config={"image_size": 256})
    ```
    """

    model_type = "hfvlm_clip"
    variants = VARIANTS

    project_images: bool | None = None
    logit_scale_init_value: float | str = "auto"
    max_logit_scale: float | str | None = "auto"
    logit_bias_init_value: float | str | None = "auto"

    def __post_init__(self, **kwargs):
        vision = self.vision_config
        if vision is None or isinstance(vision, dict):
            vision = dict(vision or {})
            kind = vision.get("model_type", VitTowerConfig.model_type)
            if kind == VitTowerConfig.model_type:
                vision = {**CLIP_VIT, **vision}
            elif kind == "hfvlm_resnet_tower":
                vision = {"modified": True, "pooling": "attention", **vision}
            self.vision_config = vision
        super().__post_init__(**kwargs)
        if self.project_images is None:  # attention pooling ends in the joint space
            self.project_images = getattr(self.vision_config, "pooling", None) != "attention"

        sigmoid = self.objective == "sigmoid"
        if self.max_logit_scale == "auto":
            self.max_logit_scale = None if sigmoid else 100.0
        if self.logit_scale_init_value == "auto":
            self.logit_scale_init_value = math.log(10.0) if sigmoid else 2.6592
        if self.logit_bias_init_value == "auto":
            self.logit_bias_init_value = -10.0 if sigmoid else None

    def validate_architecture(self):
        super().validate_architecture()
        for field, choices in (
            ("max_logit_scale", 'a number, None or "auto"'),
            ("logit_scale_init_value", 'a number or "auto"'),
            ("logit_bias_init_value", 'a number, None or "auto"'),
        ):
            value = getattr(self, field)
            if isinstance(value, str):
                raise ValueError(f"{field} must be {choices}; got {value!r}")
        if self.max_logit_scale is not None and self.max_logit_scale <= 1.0:
            raise ValueError(f"max_logit_scale must be above 1, or None; got {self.max_logit_scale}")
