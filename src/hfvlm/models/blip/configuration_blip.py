"""BLIP configuration and its published sizes."""

from huggingface_hub.dataclasses import strict

from hfvlm.fusion_config import FusionConfig


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
        "projection_dim": 32,
        "queue_size": 16,
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
class BlipConfig(FusionConfig):
    """Configuration of every BLIP head: `FusionConfig`, and

    Args:
        enc_token_id: what a text starts with that is read with its image to judge both ([ENC]); None: the last word
            of the vocabulary.
        label_smoothing: of the losses of written texts.
        release_beam_search: search with beams as the original release does (see `hfvlm.beam_search`); its converter
            sets this. Off: as transformers does now, its own BLIP included.

    ```python
    >>> BlipConfig.variant("base", vision_config={"image_size": 480})
    ```
    """

    model_type = "hfvlm_blip"
    title = "BLIP"
    variants = VARIANTS
    text_defaults = {  # BLIP's BERT: 30522 words, [DEC] and [ENC]; no token types; padded to 512
        "vocab_size": 30524,
        "type_vocab_size": 0,
        "is_decoder": True,
        "bos_token_id": 30522,
        "eos_token_id": 102,
    }

    enc_token_id: int | None = None
    label_smoothing: float = 0.1
    release_beam_search: bool = False
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.enc_token_id is None:
            self.enc_token_id = self.text_config.vocab_size - 1

    def validate_architecture(self):
        super().validate_architecture()
        if not 0 <= self.enc_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"enc_token_id must be a word of text_config's {self.text_config.vocab_size}, got {self.enc_token_id}"
            )
