"""What the configurations of two-tower models share: the towers, the joint space, and how contrast is learned."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.configuration import (
    BertTowerConfig,
    ClipTextTowerConfig,
    EfficientNetTowerConfig,
    ResNetTowerConfig,
    VitTowerConfig,
    pooled_size,
    require_choice,
    tower_config,
    variant_fields,
)


VISION_CONFIGS = (VitTowerConfig, ResNetTowerConfig, EfficientNetTowerConfig)
TEXT_CONFIGS = (ClipTextTowerConfig, BertTowerConfig)


@strict
class TwoTowerConfig(PreTrainedConfig):
    """An image tower and a text tower that meet in one space.

    Args:
        vision_config, text_config: the towers, by `model_type`.
        projection_dim: width of the joint space.
        project_images: a linear layer takes the image tower's vector there; without it the tower's own vector is in
            the joint space.
        text_projection_bias: the text side's linear layer has a bias.
        objective: of the loss: "softmax" (InfoNCE both ways) or "sigmoid" (SigLIP).
        label_smoothing: of the softmax loss; the sigmoid loss has none.
        gather_features: contrast with the images and texts of all processes; in training alone: one that evaluates by
            itself would wait for the others.
        local_loss: each process only its own rows against everyone's; the mean over processes is the same loss. The
            sigmoid loss is always computed so.
        micro_batch_size: encode so many images and texts at a time and recompute them in the backward pass: any batch
            in the memory of this one, with the gradients of the whole (https://arxiv.org/abs/2101.06983).
        loss_chunk_size: compute the loss so many rows at a time; the matrix of all pairs is never held.
    """

    sub_configs = {"vision_config": PreTrainedConfig, "text_config": PreTrainedConfig}
    is_composition = True
    #: what `Trainer` does not gather as predictions
    keys_to_ignore_at_inference = [
        "loss_itc",
        "loss_cls",
        "vision_model_output",
        "text_model_output",
        "hidden_states",
        "attentions",
    ]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    project_images: bool = True
    text_projection_bias: bool = False
    objective: str = "softmax"
    label_smoothing: float = 0.0
    gather_features: bool = True
    local_loss: bool = False
    micro_batch_size: int | None = None
    loss_chunk_size: int | None = None
    initializer_range: float = 0.02

    #: the towers where a dict names none
    default_vision = VitTowerConfig
    default_text = ClipTextTowerConfig
    #: published sizes, set by each architecture
    variants: ClassVar[dict[str, dict]] = {}

    def __post_init__(self, **kwargs):
        self.vision_config = tower_config(self.vision_config, self.default_vision, "vision_config", VISION_CONFIGS)
        self.text_config = tower_config(self.text_config, self.default_text, "text_config", TEXT_CONFIGS)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        require_choice(self, "objective", ("softmax", "sigmoid"))
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for field in ("label_smoothing", "local_loss"):
            if self.objective == "sigmoid" and getattr(self, field):
                raise ValueError(f"{field} is of the softmax objective: leave it out, got {getattr(self, field)}")
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1, got {self.projection_dim}")
        for field in ("micro_batch_size", "loss_chunk_size"):
            size = getattr(self, field)
            if size is not None and size < 1:
                raise ValueError(f"{field} must be at least 1, or None; got {size}")
        if not self.project_images and pooled_size(self.vision_config) != self.projection_dim:
            raise ValueError(
                f"projection_dim ({self.projection_dim}) must be the image tower's {pooled_size(self.vision_config)} "
                "numbers, or set project_images=True"
            )

    @classmethod
    def variant(cls, name: str, **overrides) -> "TwoTowerConfig":
        """The configuration of a published size, with fields overridden.

        Args:
            overrides: a dict for a tower overrides its fields; one that names another tower by `model_type`, or a
                ready config, replaces it.

        Raises:
            ValueError: there is no such size; names those there are.
        """
        towers = {"vision_config": None, "text_config": None}
        return cls(**variant_fields(cls.__name__, cls.variants, name, overrides, **towers))
