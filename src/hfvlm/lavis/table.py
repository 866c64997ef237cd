"""Which head each of LAVIS's names is, and where its weights are."""

from dataclasses import dataclass

from hfvlm.lavis.adapters import (
    Captioner,
    ClipFeatureExtractor,
    FusionFeatureExtractor,
    LavisModel,
    Matcher,
    Retriever,
)
from hfvlm.lavis.answering import Answerer, BlipAnswerer
from hfvlm.lavis.classifying import Classifier, Reasoner


@dataclass(frozen=True)
class Entry:
    """A model of LAVIS's.

    Args:
        adapter: what calls the head as LAVIS does.
        architecture, auto: the head: of which architecture, and by which Auto class.
        types: model_type -> a name on the Hub, or the file of the original's weights, which are to be converted.
        max_txt_len: tokens of a text.
        trains: LAVIS says how to prepare images and texts for training.
        prompt: before each text in training.
        cleans: texts are lowered and rid of punctuation.
        asks: texts are questions, whose punctuation leaves no space behind.
    """

    adapter: type[LavisModel]
    architecture: str
    auto: str
    types: dict[str, str]
    max_txt_len: int | None = None
    trains: bool = False
    prompt: str = ""
    cleans: bool = True
    asks: bool = False


_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
_ALBEF = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/ALBEF.pth"
_LAVIS_ALBEF = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/ALBEF"
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_RN50 = f"{_OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
_LAVIS_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP"
_RETRIEVAL = "AutoModelForImageTextRetrieval"
_ANSWERS = "AutoModelForVisualQuestionAnswering"
_REASONING = "AutoModelForVisualReasoning"
#: the Hub has BLIP's release; for base_coco, coco and flickr LAVIS fine-tuned anew, and other captions may come
MODELS = {
    "blip_caption": Entry(
        Captioner,
        "blip",
        "AutoModelForImageTextToText",
        {
            "base_coco": "Salesforce/blip-image-captioning-base",
            "large_coco": "Salesforce/blip-image-captioning-large",
        },
        40,
        trains=True,
        prompt=Captioner.prompt,
    ),
    "blip_feature_extractor": Entry(
        FusionFeatureExtractor, "blip", "AutoModel", {"base": f"{_BLIP}/model_base_capfilt_large.pth"}
    ),
    "blip_image_text_matching": Entry(
        Matcher,
        "blip",
        _RETRIEVAL,
        {"base": "Salesforce/blip-itm-base-coco", "large": "Salesforce/blip-itm-large-coco"},
        35,
    ),
    "blip_retrieval": Entry(
        Retriever,
        "blip",
        _RETRIEVAL,
        {"coco": "Salesforce/blip-itm-base-coco", "flickr": "Salesforce/blip-itm-base-flickr"},
        35,
        trains=True,
    ),
    "blip_vqa": Entry(
        BlipAnswerer,
        "blip",
        _ANSWERS,
        {
            "vqav2": f"{_BLIP}/model_base_vqa_capfilt_large.pth",
            "okvqa": f"{_LAVIS_BLIP}/blip_okvqa.pth",
            "aokvqa": f"{_LAVIS_BLIP}/blip_aokvqa.pth",
        },
        35,
        trains=True,
        asks=True,
    ),
    "blip_nlvr": Entry(Reasoner, "blip", _REASONING, {"nlvr": f"{_BLIP}/model_base_nlvr.pth"}, trains=True),
    "albef_feature_extractor": Entry(FusionFeatureExtractor, "albef", "AutoModel", {"base": _ALBEF}),
    "albef_retrieval": Entry(
        Retriever,
        "albef",
        _RETRIEVAL,
        {name: f"{_LAVIS_ALBEF}/albef_{name}_retrieval_lavis.pt" for name in ("coco", "flickr")},
        30,
        trains=True,
    ),
    "albef_vqa": Entry(
        Answerer, "albef", _ANSWERS, {"vqav2": f"{_LAVIS_ALBEF}/albef_vqav2_lavis.pt"}, 25, trains=True, asks=True
    ),
    "albef_nlvr": Entry(
        Reasoner, "albef", _REASONING, {"nlvr": f"{_LAVIS_ALBEF}/albef_nlvr_lavis.pt"}, 40, trains=True
    ),
    "albef_classification": Entry(
        Classifier,
        "albef",
        "AutoModelForVisualEntailment",
        {"ve": f"{_LAVIS_ALBEF}/albef_snli_ve_lavis.pt"},
        40,
        trains=True,
    ),
    "clip_feature_extractor": Entry(
        ClipFeatureExtractor,
        "clip",
        "AutoModel",
        {
            "base": "openai/clip-vit-base-patch32",
            "ViT-B-32": "openai/clip-vit-base-patch32",
            "ViT-B-16": "openai/clip-vit-base-patch16",
            "ViT-L-14": "openai/clip-vit-large-patch14",
            "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
            "RN50": _RN50,
        },
        cleans=False,
    ),
}
