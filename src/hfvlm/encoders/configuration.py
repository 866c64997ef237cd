"""Configurations of the towers, and the one place that turns a sub-config dict into its class."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.efficientnet_stages import STAGES, Block, plan_blocks, scale_channels


def require_heads(config: PreTrainedConfig) -> None:
    """Every width is shared out among the heads: refuse a config where it does not come out even."""
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
            f"({config.num_attention_heads}); change one of the two"
        )


def require_choice(config: PreTrainedConfig, field: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that a field does not know, and names those that it does."""
    value = getattr(config, field)
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}")


def require_positive(config: PreTrainedConfig, *fields: str) -> None:
    """Refuses sizes, counts and factors that are not above zero; None stands for none and is left to the type."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise ValueError(f"{field} must be positive, got {value}")


def require_shares(config: PreTrainedConfig, *fields: str) -> None:
    """Refuses rates of dropping that are no share, or that leave nothing."""
    for field in fields:
        value = getattr(config, field)
        if not 0 <= value < 1:
            raise ValueError(f"{field} must be in [0, 1), got {value}")


#: what every transformer has
TRANSFORMER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@strict
class VitTowerConfig(PreTrainedConfig):
    """Vision transformer: patches, learned positions, pre-norm blocks, a norm, a pooled vector.

    The defaults are the ViT of timm, ALBEF and BLIP; what CLIP, MoCo v3 and the ViT paper's variants do otherwise:

    Args:
        class_token: a learned token before the patches.
        pooling: what `pooler_output` is: the class token ("cls") or the mean of the patches ("mean").
        position_embedding: "learned", one table; "factorised", a table of rows and one of columns, half the width
            each; "sincos", fixed sines and cosines of rows and columns.
        interpolation: how a learned table follows another image size, "bicubic" or "bilinear".
        patch_bias: the patch projection has a bias.
        pre_norm: a norm before the first block.
        final_norm: what the norm after the last block is for: every token ("tokens"), the pooled vector alone
            ("pooled"), or nothing ("none").
        stem_config: a convolutional backbone of transformers (`BitConfig`, `ResNetConfig`, ...) whose last feature map
            is cut into patches instead of the image (the paper's hybrid). `patch_size` stays in pixels: the
            backbone's stride times the patch on the map.
    """

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
    hidden_dropout_prob: float = 0.0
    class_token: bool = True
    pooling: str = "cls"
    position_embedding: str = "learned"
    interpolation: str = "bicubic"
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: str = "tokens"
    stem_config: dict | PreTrainedConfig | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if isinstance(self.stem_config, dict):
            from transformers import CONFIG_MAPPING  # importing it asks for the configs of every architecture here

            stem = dict(self.stem_config)
            kind = stem.pop("model_type", None)
            if kind not in CONFIG_MAPPING:
                raise ValueError(f"stem_config.model_type is {kind!r}; name a backbone: bit, resnet, ...")
            self.stem_config = CONFIG_MAPPING[kind](**stem)
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size

    @property
    def stem_stride(self) -> int:
        """Pixels a side of the image that a position of the stem's feature map stands for; 1 without a stem."""
        stem = self.stem_config
        if stem is None:
            return 1
        if not hasattr(stem, "stage_names"):
            raise ValueError(f"stem_config is {stem.model_type!r}, which is no backbone; take bit, resnet, ...")
        stage = stem.stage_names.index(stem.out_features[-1])  # 0 is the stem's own stem, which halves twice
        halvings = 2 + (stage if getattr(stem, "downsample_in_first_stage", False) else max(stage - 1, 0))
        return min(2**halvings, getattr(stem, "output_stride", 2**halvings))

    def validate_architecture(self):
        require_positive(self, *TRANSFORMER_SIZES, "image_size", "patch_size", "num_channels")
        require_shares(self, "attention_dropout", "hidden_dropout_prob")
        require_heads(self)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        if self.patch_size % self.stem_stride:
            raise ValueError(
                f"patch_size ({self.patch_size}) must be a multiple of the stem's stride, {self.stem_stride} pixels"
            )
        require_choice(self, "pooling", ("cls", "mean"))
        require_choice(self, "position_embedding", ("learned", "factorised", "sincos"))
        require_choice(self, "interpolation", ("bicubic", "bilinear"))
        require_choice(self, "final_norm", ("tokens", "pooled", "none"))
        if self.pooling == "cls" and not self.class_token:
            raise ValueError("pooling 'cls' needs class_token=True; without a class token, pooling is 'mean'")
        parts = {"factorised": 2, "sincos": 4}.get(self.position_embedding, 1)
        if self.hidden_size % parts:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of {parts} for "
                f"position_embedding={self.position_embedding!r}"
            )


@strict
class ResNetTowerConfig(PreTrainedConfig):
    """ResNet v1.5, or the ResNet of CLIP: the last feature map's positions are the tokens.

    Args:
        depths: blocks in each of the four stages.
        width: channels of the stem and of the first stage's 3x3 convolutions.
        bottleneck: blocks of 1x1, 3x3, 1x1 (four times the width); else two of 3x3.
        modified: CLIP's: a stem of three convolutions, and average pooling wherever a convolution had a stride.
        pooling: `pooler_output` is the mean of the tokens ("mean"), or CLIP's attention pooling ("attention").
        num_attention_heads, output_dim: of the attention pooling; its output has `output_dim` numbers.
        image_size: pixels a side; attention pooling has a position for every token.
    """

    model_type = "hfvlm_resnet_tower"

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    bottleneck: bool = True
    modified: bool = False
    pooling: str = "mean"
    num_attention_heads: int = 32
    output_dim: int = 1024
    image_size: int = 224
    num_channels: int = 3
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1
    initializer_range: float = 0.02

    @property
    def hidden_size(self) -> int:
        """Channels of the last feature map."""
        return self.width * 8 * (4 if self.bottleneck else 1)

    def validate_architecture(self):
        require_positive(self, "width", "num_attention_heads", "output_dim", "image_size", "num_channels")
        require_choice(self, "pooling", ("mean", "attention"))
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths must name the blocks of four stages, got {list(self.depths)}")
        if self.modified and (not self.bottleneck or self.width % 2):
            raise ValueError(
                f"modified=True needs bottleneck=True and an even width, got bottleneck={self.bottleneck}, "
                f"width={self.width}"
            )
        if self.pooling == "attention":
            require_heads(self)
            if self.image_size % 32:
                raise ValueError(f"image_size ({self.image_size}) must be a multiple of 32 for attention pooling")


@strict
class EfficientNetTowerConfig(PreTrainedConfig):
    """EfficientNet: the last feature map's positions are the tokens.

    Args:
        width_coefficient, depth_coefficient: compound scaling of channels and repeats (B0 and Lite0: 1.0, 1.0).
        stages: rows of (repeats, kernel, stride, expansion, channels) before scaling.
        channel_divisor: scaled channels are multiples of it.
        lite: EfficientNet-Lite: ReLU6, no squeeze-excite, stem, head, first and last stage not scaled.
        hidden_act: None: SiLU, or ReLU6 if `lite`.
        squeeze_ratio: of a block's input channels that its squeeze-excite narrows to.
        opening_residual: the first block of a stage, too, adds its input where the shapes allow.
        padding: with a stride, "same": TensorFlow's, by the size of what is padded; "fixed": one pixel more on the
            right and at the bottom, as if every size were even.
        symmetric_blocks: with "fixed", numbers of blocks that are padded alike on both sides instead.
        head_channels: channels of the last 1x1 convolution (scaled with the width unless `lite`); None: there is none.
        hidden_size: width of the tokens; a linear layer follows the last map if that has other channels.
        pooling: `pooler_output` is the "mean" or the "max" of the tokens.
        freeze_batch_norm: normalise with the stored statistics in training too (small batches).
    """

    model_type = "hfvlm_efficientnet_tower"

    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    stages: list[list[int]] | tuple[tuple[int, ...], ...] = STAGES
    channel_divisor: int = 8
    lite: bool = False
    hidden_act: str | None = None
    squeeze_ratio: float = 0.25
    opening_residual: bool = True
    padding: str = "same"
    symmetric_blocks: list[int] | tuple[int, ...] = ()
    image_size: int = 224
    num_channels: int = 3
    head_channels: int | None = 1280
    hidden_size: int = 1280
    pooling: str = "mean"
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    drop_connect_rate: float = 0.2
    freeze_batch_norm: bool = False
    initializer_range: float = 0.02

    def validate_architecture(self):
        require_positive(self, "width_coefficient", "depth_coefficient", "channel_divisor", "squeeze_ratio")
        require_positive(self, "image_size", "num_channels", "head_channels", "hidden_size")
        require_shares(self, "drop_connect_rate")
        require_choice(self, "padding", ("same", "fixed"))
        require_choice(self, "pooling", ("mean", "max"))
        if not self.stages:
            raise ValueError("stages is empty: name at least one")
        for stage in self.stages:
            if len(stage) != 5 or min(stage) < 1 or stage[1] % 2 == 0 or stage[2] > 2:
                raise ValueError(
                    "stages must be rows of (repeats, odd kernel, stride 1 or 2, expansion, channels), got "
                    f"{list(stage)}"
                )
        if self.symmetric_blocks and self.padding == "same":
            raise ValueError('symmetric_blocks need padding="fixed": with "same" the size decides')

    @property
    def plan(self) -> tuple[int, list[Block]]:
        """The stem's channels, and the blocks after it."""
        return plan_blocks(
            self.stages, self.width_coefficient, self.depth_coefficient, self.channel_divisor, self.lite
        )

    @property
    def map_channels(self) -> int:
        """Channels of the last feature map."""
        if self.head_channels is None:
            return self.plan[1][-1].outputs
        if self.lite:
            return self.head_channels
        return scale_channels(self.head_channels, self.width_coefficient, self.channel_divisor)


@strict
class BertTowerConfig(PreTrainedConfig):
    """BERT as an encoder, as an encoder with cross-attention, or as a causal decoder.

    Args:
        encoder_hidden_size: width of the memory that cross-attention reads; None: no cross-attention.
        fusion_layer: the first layer with cross-attention; those before read text alone.
        merge_layer: where two images are read, the first layer that merges what it sees by a linear layer.
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
    fusion_layer: int = 0
    merge_layer: int = 6
    is_decoder: bool = False
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def validate_architecture(self):
        require_positive(self, *TRANSFORMER_SIZES, "vocab_size", "max_position_embeddings", "encoder_hidden_size")
        require_shares(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        require_heads(self)
        if not 0 <= self.fusion_layer < self.num_hidden_layers:
            raise ValueError(
                f"fusion_layer must be one of the {self.num_hidden_layers} layers (num_hidden_layers), got "
                f"{self.fusion_layer}"
            )
        if self.type_vocab_size < 0:
            raise ValueError(f"type_vocab_size must not be negative (0: none), got {self.type_vocab_size}")


@strict
class ClipTextTowerConfig(PreTrainedConfig):
    """CLIP's text transformer: words plus learned positions, pre-norm blocks, a final norm, one token's vector.

    Args:
        causal: each token sees only itself and the ones before it. Without it, texts must have full length: the tower
            pads shorter ones with `pad_token_id`, which are seen like any other token.
        pooling: which token `pooler_output` is: the first with the highest id ("argmax", the end of text in CLIP's
            vocabulary), the first `eos_token_id` ("eos"), the "first", or the "last" of a text of full length.
        max_position_embeddings: tokens of a text at most (the originals' `context_length`).
    """

    model_type = "hfvlm_clip_text_tower"

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    causal: bool = True
    pooling: str = "argmax"
    pad_token_id: int | None = 0
    bos_token_id: int | None = 49406
    eos_token_id: int | list[int] | None = 49407
    initializer_range: float = 0.02

    def validate_architecture(self):
        require_positive(self, *TRANSFORMER_SIZES, "vocab_size", "max_position_embeddings")
        require_shares(self, "attention_dropout")
        require_heads(self)
        require_choice(self, "pooling", ("argmax", "eos", "first", "last"))
        if self.pooling == "eos" and not isinstance(self.eos_token_id, int):
            raise ValueError(f"pooling 'eos' needs one eos_token_id, got {self.eos_token_id}")


TOWER_CONFIGS = {
    config.model_type: config
    for config in (VitTowerConfig, ResNetTowerConfig, EfficientNetTowerConfig, BertTowerConfig, ClipTextTowerConfig)
}


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


def pooled_size(vision: PreTrainedConfig) -> int:
    """Numbers in the vector that an image tower gives for an image."""
    attention = getattr(vision, "pooling", None) == "attention"
    return vision.output_dim if attention else vision.hidden_size


def variant_fields(
    title: str, variants: dict[str, dict], name: str, overrides: dict, **towers: type[PreTrainedConfig] | None
) -> dict:
    """The fields of a published size, with some overridden.

    Args:
        title: of the architecture, for the error.
        variants: its published sizes.
        overrides: fields; a dict for a tower overrides that tower's fields, one that names another tower by
            `model_type`, or a ready config, replaces it.
        towers: each tower's field -> what the tower is where its dict names none; None: it depends, and a dict that
            names a tower overrides only a size that names the same.

    Raises:
        ValueError: there is no such size; names those there are.
    """
    if name not in variants:
        raise ValueError(f"unknown {title} variant {name!r}; choose from {', '.join(variants)}")
    fields = {**variants[name], **overrides}
    for key, tower in towers.items():
        base = variants[name].get(key, {})
        given = {} if overrides.get(key) is None else overrides[key]
        kind = base.get("model_type", tower and tower.model_type)
        if isinstance(given, dict) and given.get("model_type", kind) == kind:
            given = {**base, **given}
        fields[key] = given
    return fields
