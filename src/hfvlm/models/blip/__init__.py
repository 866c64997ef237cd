"""BLIP: Bootstrapping Language-Image Pre-training, https://arxiv.org/abs/2201.12086."""

from hfvlm.registry import register


register(
    model_type="hfvlm_blip",
    title="BLIP",
    config=f"{__name__}.configuration_blip:BlipConfig",
    processor=f"{__name__}.processing_blip:BlipProcessor",
    heads={
        "AutoModel": f"{__name__}.modeling_blip:BlipModel",
        "AutoModelForImageTextToText": f"{__name__}.modeling_blip:BlipForConditionalGeneration",
        "AutoModelForPreTraining": f"{__name__}.pretraining_blip:BlipForPreTraining",
        "AutoModelForVisualEntailment": f"{__name__}.classes_blip:BlipForImageClassification",
        "AutoModelForVisualReasoning": f"{__name__}.classes_blip:BlipForVisualReasoning",
        # the same, by a class that transformers has: its pipelines can be asked for nothing else
        "AutoModelForSequenceClassification": f"{__name__}.classes_blip:BlipForVisualReasoning",
        "AutoModelForImageTextRetrieval": f"{__name__}.pretraining_blip:BlipForImageTextRetrieval",
        # the same, by a class that transformers has: its pipelines can be asked for nothing else
        "AutoModelForZeroShotImageClassification": f"{__name__}.pretraining_blip:BlipForImageTextRetrieval",
        "AutoModelForVisualQuestionAnswering": f"{__name__}.answering_blip:BlipForVisualQuestionAnswering",
    },
    pipelines={
        "image-to-text": ("hfvlm.pipelines.image_to_text:ImageToTextPipeline", "AutoModelForImageTextToText"),
        "image-text-matching": (
            "hfvlm.pipelines.image_text_matching:ImageTextMatchingPipeline",
            "AutoModelForZeroShotImageClassification",
        ),
        "image-text-retrieval": (
            "hfvlm.pipelines.image_text_retrieval:ImageTextRetrievalPipeline",
            "AutoModelForZeroShotImageClassification",
        ),
        "visual-question-answering": (
            "hfvlm.pipelines.visual_question_answering:VisualQuestionAnsweringPipeline",
            "AutoModelForVisualQuestionAnswering",
        ),
        "visual-reasoning": (
            "hfvlm.pipelines.visual_reasoning:VisualReasoningPipeline",
            "AutoModelForSequenceClassification",
        ),
    },
)
