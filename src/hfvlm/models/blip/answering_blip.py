"""BLIP answers questions about images.

The paper, the original code and its licence: see `modeling_blip`.
"""

from hfvlm.answering import FusionForVisualQuestionAnswering
from hfvlm.models.blip.modeling_blip import NOT_ANSWERING, BlipPreTrainedModel


class BlipForVisualQuestionAnswering(BlipPreTrainedModel, FusionForVisualQuestionAnswering):
    """Answers questions about images: writes an answer, or ranks given ones.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_ANSWERING]
