"""ViT configuration and its published sizes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfvlm.encoders.configuration import VitTowerConfig, tower_config, variant_fields


def _vit(width: int, layers: int, heads: int, patch: int, stem: dict | None = None) -> dict:
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
    }
    return {"vision_config": tower if stem is None else {**tower, "stem_config": stem}}


def bit_stem(*depths: int) -> dict:
    """The hybrids' ResNet: weight-standardised convolutions, group norm, TensorFlow's padding; its last feature map.

    Args:
        depths: blocks in each stage; three stages have a stride of 16, four of 32, none (the stem alone) of 4.
    """
    return {
        "model_type": "bit",
        "layer_type": "bottleneck",
        "depths": list(depths),
        "hidden_sizes": [256 * 2**stage for stage in range(len(depths))],
        "global_padding": "same",
        "embedding_dynamic_padding": True,
        "out_features": [f"stage{len(depths)}" if depths else "stem"],
    }


#: Published sizes, and "tiny" for tests.
VARIANTS = {
    "vit_ti_16": _vit(192, 12, 3, 16),
    "vit_s_16": _vit(384, 12, 6, 16),
    "vit_s_32": _vit(384, 12, 6, 32),
    "vit_b_16": _vit(768, 12, 12, 16),
    "vit_b_32": _vit(768, 12, 12, 32),
    "vit_l_16": _vit(1024, 24, 16, 16),
    "vit_l_32": _vit(1024, 24, 16, 32),
    "vit_h_14": _vit(1280, 32, 16, 14),
    "r26_vit_s_32": _vit(384, 12, 6, 32, bit_stem(2, 2, 2, 2)),
    "r50_vit_b_16": _vit(768, 12, 12, 16, bit_stem(3, 4, 9)),
    "r50_vit_l_32": _vit(1024, 24, 16, 32, bit_stem(3, 4, 6, 3)),
    "tiny": {
        "vision_config": {
            "hidden_size": 40,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        }
    },
}


@strict
class VitConfig(PreTrainedConfig):
    """Configuration of every ViT head.

    Args:
        vision_config: the tower, a `VitTowerConfig`.
        representation_size: width of a layer with tanh between the pooled vector and the classifier, as the paper's
            ImageNet-21k models and transformers' `ViTModel` have it; None: no such layer.
        label_smoothing: of the classification loss.
        image_mean, image_std: what the processor normalises with, one number or one a channel; masked image modelling
            undoes it to know a patch's colour.
        mim_ratio: share of an image's patches that masked image modelling chooses.
        mim_mask_share, mim_swap_share: shares of the chosen patches that become the mask token, and another patch of
            the image; the rest stays as it is.
        mim_bits: bits a channel of the mean colour to predict.

    ```python
    >>> VitConfig.variant("vit_b_16", vision_config={"image_size": 384}, num_labels=1000)
    ```
    """

    model_type = "hfvlm_vit"
    sub_configs = {"vision_config": VitTowerConfig}
    is_composition = True
    #: what `Trainer` does not gather as predictions
    keys_to_ignore_at_inference = ["loss_cls", "loss_mim", "bool_masked_pos", "hidden_states", "attentions"]

    vision_config: dict | PreTrainedConfig | None = None
    representation_size: int | None = None
    label_smoothing: float = 0.0
    image_mean: float | list[float] | tuple[float, ...] = 0.5
    image_std: float | list[float] | tuple[float, ...] = 0.5
    mim_ratio: float = 0.5
    mim_mask_share: float = 0.8
    mim_swap_share: float = 0.1
    mim_bits: int = 3
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.vision_config = tower_config(self.vision_config, VitTowerConfig, "vision_config")
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.vision_config.hidden_size

    @property
    def colours(self) -> int:
        """Classes of masked image modelling: 512 for 3 bits of 3 channels."""
        return 2 ** (self.mim_bits * self.vision_config.num_channels)

    def validate_architecture(self):
        if self.representation_size is not None and self.representation_size < 1:
            raise ValueError(f"representation_size must be at least 1, or None; got {self.representation_size}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0.0 < self.mim_ratio <= 1.0:
            raise ValueError(f"mim_ratio must be in (0, 1], got {self.mim_ratio}")
        shares = (self.mim_mask_share, self.mim_swap_share)
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ValueError(f"mim_mask_share and mim_swap_share must be shares of 1, got {shares[0]} and {shares[1]}")
        if not 1 <= self.mim_bits <= 8:
            raise ValueError(f"mim_bits must be between 1 and 8, got {self.mim_bits}")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, float) and len(value) != self.vision_config.num_channels:
                raise ValueError(
                    f"{name} must be one number, or one for each of the {self.vision_config.num_channels} channels; "
                    f"got {list(value)}"
                )

    @classmethod
    def variant(cls, name: str, **overrides) -> "VitConfig":
        """The configuration of a published size, with fields overridden.

        Args:
            overrides: a dict as `vision_config` overrides the tower's fields, a ready config replaces it.

        Raises:
            ValueError: there is no such size; names those there are.
        """
        return cls(**variant_fields("ViT", VARIANTS, name, overrides, vision_config=VitTowerConfig))
