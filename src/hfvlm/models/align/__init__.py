"""ALIGN: Scaling Up Visual and Vision-Language Representation Learning, https://arxiv.org/abs/2102.05918."""

from hfvlm.registry import register


register(
    model_type="hfvlm_align",
    title="ALIGN",
    config=f"{__name__}.configuration_align:AlignConfig",
    processor=f"{__name__}.processing_align:AlignProcessor",
    heads={
        "AutoModel": f"{__name__}.modeling_align:AlignModel",
        "AutoModelForZeroShotImageClassification": f"{__name__}.modeling_align:AlignModel",
        "AutoModelForImageEncoding": f"{__name__}.modeling_align:AlignVisionModel",
        "AutoModelForTextEncoding": f"{__name__}.modeling_align:AlignTextModel",
    },
    pipelines={
        "image-text-retrieval": ("hfvlm.pipelines.image_text_retrieval:ImageTextRetrievalPipeline", "AutoModel")
    },
)
