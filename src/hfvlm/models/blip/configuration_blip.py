"""BLIP configuration and its published sizes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.configuration import (
    BertTowerConfig,
    EfficientNetTowerConfig,
    ResNetTowerConfig,
    VitTowerConfig,
    tower_config,
    variant_fields,
)


#: Published sizes: what cannot be read off a checkpoint's shapes, and everything that a fresh model needs.
VARIANTS = {
    "base": {"vision_config": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}},
    "large": {
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
    },
    "tiny": {  # for tests
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
            "bos_token_id": 5,
            "eos_token_id": 3,
        },
    },
}


@strict
class BlipConfig(PreTrainedConfig):
    """Configuration of every BLIP head.

    Args:
        vision_config: the image tower, a `VitTowerConfig` (or another vision tower's config, by `model_type`).
        text_config: the `BertTowerConfig` of the text tower; it reads the image tower's width by itself.
        label_smoothing: of the captioning loss.
        projection_dim: width of the space where images and texts are compared.
        release_beam_search: search with beams as the original release does (see `hfvlm.beam_search`); its converter
            sets this. Off: as transformers does now, its own BLIP included.

    ```python
    >>> BlipConfig.variant("base", vision_config={"image_size": 480})
    ```
    """

    model_type = "hfvlm_blip"
    sub_configs = {"vision_config": PreTrainedConfig, "text_config": BertTowerConfig}
    is_composition = True
    #: what `Trainer` does not gather as predictions
    keys_to_ignore_at_inference = ["loss_lm", "past_key_values", "encoder_last_hidden_state"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    label_smoothing: float = 0.1
    projection_dim: int = 256
    release_beam_search: bool = False
    initializer_range: float = 0.02
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        self.vision_config = tower_config(
            self.vision_config, VitTowerConfig, "vision_config", (ResNetTowerConfig, EfficientNetTowerConfig)
        )
        text = self.text_config if isinstance(self.text_config, (dict, PreTrainedConfig)) else {}
        if isinstance(text, dict):  # BLIP's BERT: 30522 words, [DEC] and [ENC]; no token types; padded to 512
            text = {
                "vocab_size": 30524,
                "type_vocab_size": 0,
                "is_decoder": True,
                "bos_token_id": 30522,
                "eos_token_id": 102,
                "encoder_hidden_size": self.vision_config.hidden_size,
                **text,
            }
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

    @classmethod
    def variant(cls, name: str, **overrides) -> "BlipConfig":
        """The configuration of a published size, with fields overridden.

        Args:
            overrides: a dict for a sub-config overrides its fields; one that names another tower by `model_type`, or
                a ready config, replaces it.
        """
        towers = {"vision_config": VitTowerConfig, "text_config": BertTowerConfig}
        return cls(**variant_fields("BLIP", VARIANTS, name, overrides, **towers))
