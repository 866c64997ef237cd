"""ALBEF configuration and its published size."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.fusion_config import FusionConfig


#: Published sizes: what cannot be read off a checkpoint's shapes, and everything that a fresh model needs.
VARIANTS = {
    "base": {
        "vision_config": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 256,
        },
    },
    "tiny": {  # for tests
        "projection_dim": 32,
        "queue_size": 16,
        "mask_token_id": 4,
        "mlm_probability": 0.3,
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
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "fusion_layer": 2,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    },
}


@strict
class AlbefConfig(FusionConfig):
    """Configuration of every ALBEF head: `FusionConfig`, and

    Args:
        mlm_probability: how many of a text's tokens are hidden and predicted.
        mask_token_id: what hides them ([MASK]). `text_config.bos_token_id` ([CLS]) is never hidden.

    ```python
    >>> AlbefConfig.variant("base", vision_config={"image_size": 384})
    ```
    """

    model_type = "hfvlm_albef"
    title = "ALBEF"
    variants = VARIANTS
    text_defaults = {"fusion_layer": 6, "bos_token_id": 101, "eos_token_id": 102}

    queue_size: int = 65536
    mlm_probability: float = 0.15
    mask_token_id: int = 103
    is_encoder_decoder: bool = True

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The decoder's is that of the tower that writes answers, which may have another number of layers."""
        return self.answering_config() if decoder and not encoder else super().get_text_config(decoder, encoder)

    def validate_architecture(self):
        super().validate_architecture()
        if not self.text_config.fusion_layer:
            raise ValueError("text_config.fusion_layer must be above 0: ALBEF reads a text alone before it fuses")
        if not 0.0 <= self.mlm_probability <= 1.0:
            raise ValueError(f"mlm_probability must be between 0 and 1, got {self.mlm_probability}")
        if not 0 <= self.mask_token_id < self.text_config.vocab_size:
            words = self.text_config.vocab_size
            raise ValueError(f"mask_token_id must be one of text_config's {words} words, got {self.mask_token_id}")
