"""hfvlm: the vision-language lineage, HuggingFace-native.

Importing this package costs next to nothing: it makes the architectures known to transformers' Auto classes, and
imports each public name on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hfvlm import models, registry  # noqa: F401  (importing models fills the registry)
from hfvlm.registry import register
from hfvlm.version import __version__


if TYPE_CHECKING:  # what __getattr__ imports
    from hfvlm.auto import (
        AutoModelForImageEncoding,
        AutoModelForImageTextRetrieval,
        AutoModelForTextAssignment,
        AutoModelForVisualEntailment,
        AutoModelForVisualReasoning,
    )
    from hfvlm.lavis import load_model, load_model_and_preprocess
    from hfvlm.models.albef.answering_albef import AlbefForVisualQuestionAnswering
    from hfvlm.models.albef.assignment_albef import AlbefForTextAssignment
    from hfvlm.models.albef.classes_albef import AlbefForImageClassification, AlbefForVisualReasoning
    from hfvlm.models.albef.configuration_albef import AlbefConfig
    from hfvlm.models.albef.modeling_albef import AlbefModel
    from hfvlm.models.albef.pretraining_albef import AlbefForImageTextRetrieval, AlbefForPreTraining
    from hfvlm.models.albef.processing_albef import AlbefProcessor
    from hfvlm.models.align.configuration_align import AlignConfig
    from hfvlm.models.align.modeling_align import AlignModel, AlignTextModel, AlignVisionModel
    from hfvlm.models.align.processing_align import AlignProcessor
    from hfvlm.models.blip.answering_blip import BlipForVisualQuestionAnswering
    from hfvlm.models.blip.classes_blip import BlipForImageClassification, BlipForVisualReasoning
    from hfvlm.models.blip.configuration_blip import BlipConfig
    from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration, BlipModel
    from hfvlm.models.blip.pretraining_blip import BlipForImageTextRetrieval, BlipForPreTraining
    from hfvlm.models.blip.processing_blip import BlipProcessor
    from hfvlm.models.clip.configuration_clip import ClipConfig
    from hfvlm.models.clip.modeling_clip import (
        ClipForImageClassification,
        ClipModel,
        ClipTextModel,
        ClipVisionModel,
    )
    from hfvlm.models.clip.processing_clip import ClipProcessor
    from hfvlm.models.moco.configuration_moco import MocoConfig
    from hfvlm.models.moco.modeling_moco import MocoForImageClassification, MocoModel
    from hfvlm.models.moco.pretraining_moco import MocoForPreTraining
    from hfvlm.models.moco.processing_moco import MocoProcessor
    from hfvlm.models.vit.configuration_vit import VitConfig
    from hfvlm.models.vit.modeling_vit import VitForImageClassification, VitForMaskedImageModeling, VitModel
    from hfvlm.models.vit.processing_vit import VitProcessor
    from hfvlm.pipelines import pipeline


_PUBLIC = {
    "AutoModelForImageEncoding": "hfvlm.auto:AutoModelForImageEncoding",
    "AutoModelForImageTextRetrieval": "hfvlm.auto:AutoModelForImageTextRetrieval",
    "AutoModelForTextAssignment": "hfvlm.auto:AutoModelForTextAssignment",
    "AutoModelForVisualEntailment": "hfvlm.auto:AutoModelForVisualEntailment",
    "AutoModelForVisualReasoning": "hfvlm.auto:AutoModelForVisualReasoning",
    "load_model": "hfvlm.lavis:load_model",
    "load_model_and_preprocess": "hfvlm.lavis:load_model_and_preprocess",
    "pipeline": "hfvlm.pipelines:pipeline",
}


#: modules that are imported where they are named
_PARTS = ("data", "encoders", "evaluation", "grounding", "losses", "nn", "pipelines")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = registry.load(_PUBLIC[name])
    elif name in _PARTS:
        value = import_module(f"hfvlm.{name}")
    else:
        for row in registry.ARCHITECTURES.values():
            if name in row.classes:
                value = registry.load(row.classes[name])
                break
        else:
            raise AttributeError(f"module 'hfvlm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    classes = [name for row in registry.ARCHITECTURES.values() for name in row.classes]
    return sorted([*globals(), *_PUBLIC, *classes])


__all__ = [
    "AlbefConfig",
    "AlbefForImageClassification",
    "AlbefForImageTextRetrieval",
    "AlbefForPreTraining",
    "AlbefForTextAssignment",
    "AlbefForVisualQuestionAnswering",
    "AlbefForVisualReasoning",
    "AlbefModel",
    "AlbefProcessor",
    "AlignConfig",
    "AlignModel",
    "AlignProcessor",
    "AlignTextModel",
    "AlignVisionModel",
    "AutoModelForImageEncoding",
    "AutoModelForImageTextRetrieval",
    "AutoModelForTextAssignment",
    "AutoModelForVisualEntailment",
    "AutoModelForVisualReasoning",
    "BlipConfig",
    "BlipForConditionalGeneration",
    "BlipForImageClassification",
    "BlipForImageTextRetrieval",
    "BlipForPreTraining",
    "BlipForVisualQuestionAnswering",
    "BlipForVisualReasoning",
    "BlipModel",
    "BlipProcessor",
    "ClipConfig",
    "ClipForImageClassification",
    "ClipModel",
    "ClipProcessor",
    "ClipTextModel",
    "ClipVisionModel",
    "MocoConfig",
    "MocoForImageClassification",
    "MocoForPreTraining",
    "MocoModel",
    "MocoProcessor",
    "VitConfig",
    "VitForImageClassification",
    "VitForMaskedImageModeling",
    "VitModel",
    "VitProcessor",
    "__version__",
    "load_model",
    "load_model_and_preprocess",
    "pipeline",
    "register",
]
