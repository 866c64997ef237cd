"""MoCo configuration, versions 1 to 3, and the published sizes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.configuration import (
    EfficientNetTowerConfig,
    ResNetTowerConfig,
    VitTowerConfig,
    pooled_size,
    require_choice,
    tower_config,
    variant_fields,
)


#: what version 3's ViT has otherwise than the plain one
V3_VIT = {"position_embedding": "sincos"}


def _v3(vision: dict, projection_layers: int, predictor_norm: bool, temperature: float) -> dict:
    return {
        "vision_config": vision,
        "objective": "symmetric",
        "projection_dim": 256,
        "projection_hidden_size": 4096,
        "projection_layers": projection_layers,
        "predictor_norm": predictor_norm,
        "temperature": temperature,
        "momentum": 0.99,
    }


def _v3_vit(width: int) -> dict:
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 12}
    return _v3({"model_type": "hfvlm_vit_tower", **V3_VIT, **tower}, 3, True, 0.2)


#: Published sizes, and "tiny" for tests.
VARIANTS = {
    "v1": {"projection_layers": 1, "temperature": 0.07},
    "v2": {"projection_layers": 2, "temperature": 0.2},
    "v3_vit_small": _v3_vit(384),
    "v3_vit_base": _v3_vit(768),
    "v3_resnet50": _v3({}, 2, False, 1.0),
    "tiny": {
        "vision_config": {"depths": (1, 1, 1, 1), "width": 4, "image_size": 32},
        "projection_dim": 16,
        "queue_size": 12,
        "momentum": 0.9,
    },
}


@strict
class MocoConfig(PreTrainedConfig):
    """Configuration of every MoCo head; the defaults are version 2 with a ResNet-50.

    Args:
        vision_config: the encoder: a `ResNetTowerConfig`, or by `model_type` a `VitTowerConfig` (a dict is completed
            to version 3's, with fixed positions) or an `EfficientNetTowerConfig`.
        objective: "queue": a view's negatives are the keys of earlier batches (versions 1 and 2); "symmetric": those
            of the batch itself, each view asks for the other, and a predictor follows the projection (version 3).
        projection_dim: numbers that are compared.
        projection_layers: linear layers from the encoder's vector to those; 1 in version 1, 2 in version 2.
        projection_hidden_size: width between the projection's layers (and the predictor's); None: the encoder's.
        predictor_norm: a batch norm ends the predictor.
        queue_size: keys that the queue holds; any number, whatever the batch.
        temperature: similarities are divided by it; the symmetric loss is scaled by twice as much.
        momentum: share of itself that the momentum encoder keeps at each step.
        momentum_steps: optimiser steps over which the momentum rises from there to 1, by a cosine; None: constant.
        shuffle_batch_norm: with several processes, the queue's keys are encoded in shuffled batches, so that batch
            norm's statistics do not tell which query they belong to.
        freeze_patch_projection: a ViT's patch projection stays as it was drawn (version 3's cure for instability).

    ```python
    >>> MocoConfig.variant("v2", vision_config={"image_size": 160})
    ```
    """

    model_type = "hfvlm_moco"
    sub_configs = {"vision_config": PreTrainedConfig}
    is_composition = True
    #: what `Trainer` does not gather as predictions
    keys_to_ignore_at_inference = [
        "loss_contrast",
        "loss_cls",
        "query_embeds",
        "key_embeds",
        "hidden_states",
        "attentions",
    ]

    vision_config: dict | PreTrainedConfig | None = None
    objective: str = "queue"
    projection_dim: int = 128
    projection_layers: int = 2
    projection_hidden_size: int | None = None
    predictor_norm: bool = True
    queue_size: int = 65536
    temperature: float = 0.2
    momentum: float = 0.999
    momentum_steps: int | None = None
    shuffle_batch_norm: bool = True
    freeze_patch_projection: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        vision = self.vision_config
        if isinstance(vision, dict) and vision.get("model_type") == VitTowerConfig.model_type:
            vision = {**V3_VIT, **vision}
        self.vision_config = tower_config(
            vision, ResNetTowerConfig, "vision_config", (VitTowerConfig, EfficientNetTowerConfig)
        )
        super().__post_init__(**kwargs)

    @property
    def feature_size(self) -> int:
        """Numbers in the encoder's pooled vector."""
        return pooled_size(self.vision_config)

    def validate_architecture(self):
        require_choice(self, "objective", ("queue", "symmetric"))
        for name in ("projection_dim", "projection_layers", "queue_size", "projection_hidden_size", "momentum_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0.0 <= self.momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {self.momentum}")

    @classmethod
    def variant(cls, name: str, **overrides) -> "MocoConfig":
        """The configuration of a published size, with fields overridden.

        Args:
            overrides: a dict as `vision_config` overrides the tower's fields; one that names another tower by
                `model_type`, or a ready config, replaces it.

        Raises:
            ValueError: there is no such size; names those there are.
        """
        return cls(**variant_fields("MoCo", VARIANTS, name, overrides, vision_config=ResNetTowerConfig))
