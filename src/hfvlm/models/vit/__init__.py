"""ViT: An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929."""

from hfvlm.registry import register


register(
    model_type="hfvlm_vit",
    title="ViT",
    config=f"{__name__}.configuration_vit:VitConfig",
    processor=f"{__name__}.processing_vit:VitProcessor",
    heads={
        "AutoModel": f"{__name__}.modeling_vit:VitModel",
        "AutoModelForImageClassification": f"{__name__}.modeling_vit:VitForImageClassification",
        "AutoModelForMaskedImageModeling": f"{__name__}.modeling_vit:VitForMaskedImageModeling",
    },
)
