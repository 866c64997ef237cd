"""Auto classes for heads that transformers has none for; filled from the same registry, used in the same way."""

from collections import OrderedDict

from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


class AutoModelForImageEncoding(_BaseAutoModelClass):
    """An image tower alone, with its projection into the space that it shares with texts."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForImageTextRetrieval(_BaseAutoModelClass):
    """Images and texts compared in one space, and pair by pair."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForTextAssignment(_BaseAutoModelClass):
    """Which of two images a text is about, or neither; the pairs are drawn in training."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForVisualEntailment(_BaseAutoModelClass):
    """The class of an image and a text."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForVisualReasoning(_BaseAutoModelClass):
    """Whether a statement is true of two images."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
