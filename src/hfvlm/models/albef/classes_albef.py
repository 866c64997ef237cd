"""ALBEF's heads that choose among classes: visual entailment, and visual reasoning (NLVR2).

The paper, the original code and its licence: see `modeling_albef`.
"""

from hfvlm.fusion_classes import FusionForImageClassification, FusionForVisualReasoning
from hfvlm.models.albef.modeling_albef import NOT_CLASSES, AlbefPreTrainedModel


class AlbefForImageClassification(AlbefPreTrainedModel, FusionForImageClassification):
    """Chooses the class of an image and a text (visual entailment), with momentum distillation.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_CLASSES]


class AlbefForVisualReasoning(AlbefPreTrainedModel, FusionForVisualReasoning):
    """Tells whether a statement is true of two images (NLVR2): each fusion layer twice, an image each.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_CLASSES]
    pairing = "alternate"
