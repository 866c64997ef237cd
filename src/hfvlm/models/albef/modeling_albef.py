"""ALBEF models without an objective.

Align before Fuse: Vision and Language Representation Learning with Momentum Distillation,
https://arxiv.org/abs/2107.07651; original code https://github.com/salesforce/ALBEF (BSD-3-Clause).
"""

from hfvlm.fusion import FusionModel, FusionPreTrainedModel
from hfvlm.models.albef.configuration_albef import AlbefConfig


#: what another head's folder holds beside retrieval, features, a head that chooses classes, one that
#: assigns texts, and one that answers
NOT_MATCHING = (r"^text_decoder\.", r"^lm_head\.", r"^teacher_", r"^(image|text)_queue\.", r"^ta_head\.")
NOT_FEATURES = (*NOT_MATCHING, r"^itm_head\.", r"^temp$", r"^cls_head\.", r"^text_model\.second_layers\.")
NOT_CLASSES = (*NOT_MATCHING, r"^itm_head\.", r"^temp$", r"^vision_proj\.", r"^text_proj\.")
NOT_ASSIGNING = (*NOT_MATCHING[:-1], r"^itm_head\.", r"^temp$", r"^text_proj\.", r"^cls_head\.")
NOT_ANSWERING = (*NOT_FEATURES[1:], r"^vision_proj\.", r"^text_proj\.")


class AlbefPreTrainedModel(FusionPreTrainedModel):
    """The base of every ALBEF head: the first layers of BERT read the text, the others fuse it with the image."""

    config_class = AlbefConfig
    base_model_prefix = "albef"


class AlbefModel(AlbefPreTrainedModel, FusionModel):
    """ALBEF's features without a head: of images, of texts, and of texts that read their images.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_FEATURES]
