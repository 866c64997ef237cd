"""What the configurations of fusion models (ALBEF, BLIP) share."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.configuration import (
    BertTowerConfig,
    EfficientNetTowerConfig,
    ResNetTowerConfig,
    VitTowerConfig,
    require_positive,
    tower_config,
    variant_fields,
)
from hfvlm.losses.momentum_contrast import check_alpha


@strict
class FusionConfig(PreTrainedConfig):
    """An image tower, a BERT that reads it by cross-attention, a space to compare both in, a momentum teacher.

    Args:
        vision_config: the image tower, a `VitTowerConfig` (or another vision tower's config, by `model_type`).
        text_config: the `BertTowerConfig` of the text tower; it reads the image tower's width by itself.
        projection_dim: width of the space where images and texts are compared; 0: none.
        initial_temperature: what similarities are divided by at the start; the temperature is learned.
        momentum: the share of itself that the teacher keeps at each step; None: training without a teacher and queue.
        queue_size: pairs of earlier batches that a batch is contrasted with.
        alpha: how much of the targets is the teacher's own distribution, 0 to 1.
        alpha_steps: training steps over which alpha grows from 0; 0: it is constant.
        label_smoothing: of the language-modelling losses.
        decoder_layers: of the tower that writes answers; None: as many as fuse.
        answers_read_padding: answers are generated from the padding of questions, too, so that they depend on the
            batch, as BLIP's release and transformers do; its converter sets this. Ranking and training never do.
    """

    sub_configs = {"vision_config": PreTrainedConfig, "text_config": BertTowerConfig}
    is_composition = True
    #: what `Trainer` does not gather as predictions
    keys_to_ignore_at_inference = [
        *("loss_itc", "loss_itm", "loss_mlm", "loss_lm", "loss_cls", "past_key_values", "encoder_last_hidden_state"),
        *("logits_per_image", "logits_per_text", "itm_logits", "vision_model_output", "text_model_output"),
        *(
            "question_model_output",
            "second_vision_model_output",
            "image_pairs",
            "last_hidden_state",
            "hidden_states",
            "attentions",
            "cross_attentions",
        ),
    ]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    initial_temperature: float = 0.07
    momentum: float | None = 0.995
    queue_size: int = 57600
    alpha: float = 0.4
    alpha_steps: int = 0
    label_smoothing: float = 0.0
    decoder_layers: int | None = None
    answers_read_padding: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    #: of the text tower, under what the caller says
    text_defaults = {}
    #: name, and published sizes
    title = ""
    variants = {}

    def __post_init__(self, **kwargs):
        self.vision_config = tower_config(
            self.vision_config, VitTowerConfig, "vision_config", (ResNetTowerConfig, EfficientNetTowerConfig)
        )
        text = self.text_config if isinstance(self.text_config, (dict, PreTrainedConfig)) else {}
        if isinstance(text, dict):
            text = {"encoder_hidden_size": self.vision_config.hidden_size, **self.text_defaults, **text}
        self.text_config = tower_config(text, BertTowerConfig, "text_config")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        if self.text_config.encoder_hidden_size != self.vision_config.hidden_size:
            raise ValueError(
                f"text_config.encoder_hidden_size ({self.text_config.encoder_hidden_size}) must equal "
                f"vision_config.hidden_size ({self.vision_config.hidden_size}): cross-attention reads the image tokens"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        require_positive(self, "initial_temperature", "queue_size", "decoder_layers")
        check_alpha(self.alpha)
        if self.momentum is not None and not 0.0 <= self.momentum <= 1.0:
            raise ValueError(f"momentum must be between 0 and 1, or None for no teacher; got {self.momentum}")
        for field in ("projection_dim", "alpha_steps"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative (0: none), got {getattr(self, field)}")

    def answering_config(self) -> BertTowerConfig:
        """Of the tower that writes answers: the text tower's layers that fuse, reading states of its width."""
        text = copy.deepcopy(self.text_config)
        text.num_hidden_layers = self.decoder_layers or text.num_hidden_layers - text.fusion_layer
        text.encoder_hidden_size, text.fusion_layer, text.is_decoder = text.hidden_size, 0, True
        return text

    @classmethod
    def variant(cls, name: str, **overrides) -> "FusionConfig":
        """The configuration of a published size, with fields overridden.

        Args:
            overrides: a dict for a sub-config overrides its fields; one that names another tower by `model_type`, or
                a ready config, replaces it.
        """
        towers = {"vision_config": VitTowerConfig, "text_config": BertTowerConfig}
        return cls(**variant_fields(cls.title, cls.variants, name, overrides, **towers))
