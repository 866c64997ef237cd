"""ALBEF: Align before Fuse, https://arxiv.org/abs/2107.07651."""

from hfvlm.registry import register


register(
    model_type="hfvlm_albef",
    title="ALBEF",
    config=f"{__name__}.configuration_albef:AlbefConfig",
    processor=f"{__name__}.processing_albef:AlbefProcessor",
    heads={
        "AutoModel": f"{__name__}.modeling_albef:AlbefModel",
        "AutoModelForPreTraining": f"{__name__}.pretraining_albef:AlbefForPreTraining",
        "AutoModelForTextAssignment": f"{__name__}.assignment_albef:AlbefForTextAssignment",
        "AutoModelForVisualEntailment": f"{__name__}.classes_albef:AlbefForImageClassification",
        "AutoModelForVisualReasoning": f"{__name__}.classes_albef:AlbefForVisualReasoning",
        # the same, by a class that transformers has: its pipelines can be asked for nothing else
        "AutoModelForSequenceClassification": f"{__name__}.classes_albef:AlbefForVisualReasoning",
        "AutoModelForImageTextRetrieval": f"{__name__}.pretraining_albef:AlbefForImageTextRetrieval",
        # the same, by a class that transformers has: its pipelines can be asked for nothing else
        "AutoModelForZeroShotImageClassification": f"{__name__}.pretraining_albef:AlbefForImageTextRetrieval",
        "AutoModelForVisualQuestionAnswering": f"{__name__}.answering_albef:AlbefForVisualQuestionAnswering",
    },
    pipelines={
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
