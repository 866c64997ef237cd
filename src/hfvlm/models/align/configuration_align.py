"""ALIGN configuration and its sizes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.configuration import BertTowerConfig, EfficientNetTowerConfig, pooled_size
from hfvlm.two_tower_config import TwoTowerConfig


#: what ALIGN's EfficientNet has otherwise than the plain one: it ends at its last block, and pads as Keras does
ALIGN_EFFICIENTNET = {
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "image_size": 289,
    "head_channels": None,
    "padding": "fixed",
    "opening_residual": False,
}


def _size(width: float, depth: float) -> dict:
    return {"vision_config": {"width_coefficient": width, "depth_coefficient": depth}}


#: EfficientNet's sizes with a BERT-base, "base" as published (B7), and "tiny" for tests.
VARIANTS = {
    "base": _size(2.0, 3.1),
    "b0": _size(1.0, 1.0),
    "b1": _size(1.0, 1.1),
    "b2": _size(1.1, 1.2),
    "b3": _size(1.2, 1.4),
    "b4": _size(1.4, 1.8),
    "b5": _size(1.6, 2.2),
    "b6": _size(1.8, 2.6),
    "b7": _size(2.0, 3.1),
    "tiny": {
        "vision_config": {
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "stages": ((1, 3, 1, 1, 16), (2, 5, 2, 6, 24), (1, 3, 1, 6, 40)),
            "image_size": 32,
            "drop_connect_rate": 0.0,
        },
        "text_config": {
            "vocab_size": 64,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
        },
    },
}


@strict
class AlignConfig(TwoTowerConfig):
    """Configuration of every ALIGN head; the fields that all two-tower models have are `TwoTowerConfig`'s.

    Args:
        vision_config: an `EfficientNetTowerConfig` in ALIGN's form (a dict is completed to that), or another tower's
            config by `model_type`.
        text_config: a `BertTowerConfig`, or another tower's by `model_type`.
        projection_dim: None: the width of the image tower, or 640 if that is projected.
        project_images: None: an EfficientNet's own vector is in the joint space, another tower's is taken there.
        label_smoothing: None: 0.1, the paper's, or 0 of the sigmoid loss.
        temperature_init_value: what similarities are divided by in a fresh model.
        min_temperature: the temperature is held at this or above while training.
        text_pooler: the model carries the pooler of a BERT, which no feature reads: transformers' format has it, and
            gets it back.

    ```python
    >>> AlignConfig.variant("b0", vision_config={"image_size": 224})
    ```
    """

    model_type = "hfvlm_align"
    variants = VARIANTS
    default_vision = EfficientNetTowerConfig
    default_text = BertTowerConfig

    projection_dim: int | None = None
    project_images: bool | None = None
    text_projection_bias: bool = True
    label_smoothing: float | None = None
    temperature_init_value: float = 1.0
    min_temperature: float = 0.01
    text_pooler: bool = False

    def __post_init__(self, **kwargs):
        vision = self.vision_config
        if not isinstance(vision, PreTrainedConfig):
            vision = dict(vision or {})
            if vision.get("model_type", EfficientNetTowerConfig.model_type) == EfficientNetTowerConfig.model_type:
                vision = {**ALIGN_EFFICIENTNET, **vision}
                if "hidden_size" not in vision:
                    vision["hidden_size"] = EfficientNetTowerConfig(**vision).map_channels
            self.vision_config = vision
        super().__post_init__(**kwargs)
        if self.label_smoothing is None:
            self.label_smoothing = 0.0 if self.objective == "sigmoid" else 0.1
        if self.project_images is None:
            self.project_images = not isinstance(self.vision_config, EfficientNetTowerConfig)
        if self.projection_dim is None:
            self.projection_dim = 640 if self.project_images else pooled_size(self.vision_config)

    def validate_architecture(self):
        super().validate_architecture()
        for field in ("temperature_init_value", "min_temperature"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} divides the similarities: it must be above 0, got {getattr(self, field)}")
