"""BLIP's heads that choose among classes: of an image and a text, and visual reasoning (NLVR2).

The paper, the original code and its licence: see `modeling_blip`.
"""

from hfvlm.fusion_classes import FusionForImageClassification, FusionForVisualReasoning
from hfvlm.models.blip.modeling_blip import NOT_CLASSES, BlipPreTrainedModel


class BlipForImageClassification(BlipPreTrainedModel, FusionForImageClassification):
    """Chooses the class of an image and a text.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_CLASSES]
    distils = False


class BlipForVisualReasoning(BlipPreTrainedModel, FusionForVisualReasoning):
    """Tells whether a statement is true of two images (NLVR2): a cross-attention for each, their outputs merged.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_CLASSES]
    distils = False
    pairing = "merge"
