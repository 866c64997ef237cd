"""MoCo: Momentum Contrast for Unsupervised Visual Representation Learning, https://arxiv.org/abs/1911.05722."""

from hfvlm.registry import register


register(
    model_type="hfvlm_moco",
    title="MoCo",
    config=f"{__name__}.configuration_moco:MocoConfig",
    processor=f"{__name__}.processing_moco:MocoProcessor",
    heads={
        "AutoModel": f"{__name__}.modeling_moco:MocoModel",
        "AutoModelForPreTraining": f"{__name__}.pretraining_moco:MocoForPreTraining",
        "AutoModelForImageClassification": f"{__name__}.modeling_moco:MocoForImageClassification",
    },
)
