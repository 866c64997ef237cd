"""CLIP: Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020."""

from hfvlm.registry import register


register(
    model_type="hfvlm_clip",
    title="CLIP",
    config=f"{__name__}.configuration_clip:ClipConfig",
    processor=f"{__name__}.processing_clip:ClipProcessor",
    heads={
        "AutoModel": f"{__name__}.modeling_clip:ClipModel",
        "AutoModelForZeroShotImageClassification": f"{__name__}.modeling_clip:ClipModel",
        "AutoModelForImageClassification": f"{__name__}.modeling_clip:ClipForImageClassification",
        "AutoModelForImageEncoding": f"{__name__}.modeling_clip:ClipVisionModel",
        "AutoModelForTextEncoding": f"{__name__}.modeling_clip:ClipTextModel",
    },
    pipelines={
        "image-text-retrieval": ("hfvlm.pipelines.image_text_retrieval:ImageTextRetrievalPipeline", "AutoModel")
    },
)
