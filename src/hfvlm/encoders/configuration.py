"""Configurations of the towers, and the one place that turns a sub-config dict into its class."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


def require_heads(config: PreTrainedConfig) -> None:
    """Every width is shared out among the heads: refuse a config where it does not come out even."""
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
            f"({config.num_attention_heads}); change one of the two"
        )


@strict
class VitTowerConfig(PreTrainedConfig):
    """Vision transformer: patches, a class token, learned positions, pre-norm blocks, a final norm on all tokens."""

    model_type = "hfvlm_vit_tower"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size

    def validate_architecture(self):
        require_heads(self)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")


@strict
class EfficientNetTowerConfig(PreTrainedConfig):
    """EfficientNet: the last feature map's positions are the tokens.

    Args:
        width_coefficient, depth_coefficient: compound scaling of channels and repeats (B0 and Lite0: 1.0, 1.0).
        lite: EfficientNet-Lite: ReLU6, no squeeze-excite, stem, head, first and last stage not scaled.
        head_channels: channels of the last 1x1 convolution (scaled with the width unless `lite`).
        hidden_size: width of the tokens; a linear layer follows the last map if it differs from `head_channels`.
        freeze_batch_norm: normalise with the stored statistics in training too (small batches).
    """

    model_type = "hfvlm_efficientnet_tower"

    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    lite: bool = False
    image_size: int = 224
    num_channels: int = 3
    head_channels: int = 1280
    hidden_size: int = 1280
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    drop_connect_rate: float = 0.2
    freeze_batch_norm: bool = False
    initializer_range: float = 0.02


@strict
class BertTowerConfig(PreTrainedConfig):
    """BERT as an encoder, as an encoder with cross-attention, or as a causal decoder.

    Args:
        encoder_hidden_size: width of the memory that cross-attention reads; None: no cross-attention.
        is_decoder: each token sees only itself and the ones before it.
        type_vocab_size: 0 leaves token-type embeddings out, as BLIP does.
    """

    model_type = "hfvlm_bert_tower"

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    encoder_hidden_size: int | None = None
    is_decoder: bool = False
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def validate_architecture(self):
        require_heads(self)


TOWER_CONFIGS = {config.model_type: config for config in (VitTowerConfig, EfficientNetTowerConfig, BertTowerConfig)}


def tower_config(
    config: dict | PreTrainedConfig | None,
    default: type[PreTrainedConfig],
    name: str,
    others: tuple[type[PreTrainedConfig], ...] = (),
) -> PreTrainedConfig:
    """A sub-config from what `config.json` or the caller gave.

    Args:
        config: a ready config, a dict (its `model_type` picks the class, `default` if it has none), or None.
        name: the field, for the error.
        others: further towers that the field may name. A ready config of a foreign class is taken too, for a tower
            that is given ready.

    Raises:
        ValueError: for a tower that the field cannot hold.
        TypeError: for anything but a dict or a config.
    """
    if config is None:
        return default()
    if not isinstance(config, (dict, PreTrainedConfig)):
        raise TypeError(f"{name} must be a dict or a config, got {type(config).__name__}")
    towers = {tower.model_type: tower for tower in (default, *others)}
    ready = isinstance(config, PreTrainedConfig)
    kind = config.model_type if ready else config.get("model_type", default.model_type)
    if kind not in towers and not (ready and kind not in TOWER_CONFIGS):
        raise ValueError(f"{name}.model_type is {kind!r}; known towers: {', '.join(sorted(towers))}")
    return config if ready else towers[kind](**config)
