"""Every case that the original research code was recorded in: `HFVLM_GOLDENS` names the folder of case folders."""

import os
from pathlib import Path

import golden_albef
import golden_answers
import golden_blip
import golden_blip_pairs
import golden_classes
import golden_clip
import golden_losses
import golden_moco
import pytest
from golden import Golden

from hfvlm.registry import ARCHITECTURES, load


FOLDER = Path(os.environ.get("HFVLM_GOLDENS") or Path(__file__).parent / "goldens")

#: How a case is compared, by what its name starts with (the longest match counts).
COMPARISONS = {
    "albef_nlvr": golden_classes.distilled,
    "albef_pos_interp": golden_classes.resized,
    "albef_ve": golden_classes.distilled,
    "blip_nlvr": golden_classes.merged,
    "blip_nlvr_from_base": golden_classes.merged_from_base,
    "albef_pretrain": golden_albef.pretraining,
    "albef_pretrain_nlvr": golden_classes.assigned,
    "albef_retrieval": golden_albef.retrieval,
    "albef_from_pretrain": golden_answers.albef_from_pretraining,
    "albef_vqa": golden_answers.albef,
    "blip_caption": golden_blip.caption,
    "blip_feature_extractor": golden_blip_pairs.features,
    "blip_itm": golden_blip_pairs.itm,
    "blip_pretrain": golden_blip_pairs.pretraining,
    "blip_retrieval": golden_blip_pairs.retrieval,
    "blip_vqa": golden_answers.blip,
    "lavis_albef_feature_extractor": golden_albef.lavis_features,
    "lavis_blip_feature_extractor": golden_blip_pairs.lavis_features,
    "blip_pos_interp": golden_blip.pos_interp,
    "moco": golden_moco.pretraining,
    "open_clip": golden_clip.open_clip,
    "open_clip_losses": golden_losses.losses,
    "open_clip_losses_ddp2": golden_losses.two_processes,
    "openai_clip": golden_clip.openai,
}

#: What the cases of a name need: an architecture, one of its classes (`Class`, `Class.method`), or a function
#: ("module:name").
NEEDS = {
    "albef_from_pretrain": "AlbefForVisualQuestionAnswering",
    "albef_nlvr": "AlbefForVisualReasoning",
    "albef_pos_interp": "AlbefForImageClassification",
    "albef_pretrain": "AlbefForPreTraining",
    "albef_pretrain_nlvr": "AlbefForTextAssignment",
    "albef_retrieval": "AlbefForImageTextRetrieval",
    "albef_ve": "AlbefForImageClassification",
    "albef_vqa": "AlbefForVisualQuestionAnswering",
    "alpro": "alpro",
    "blip": "blip",
    "blip_feature_extractor": "BlipModel.extract_features",
    "blip_itm": "BlipForImageTextRetrieval",
    "blip_nlvr": "BlipForVisualReasoning",
    "blip_pretrain": "BlipForPreTraining",
    "blip_retrieval": "BlipForImageTextRetrieval",
    "blip_vqa": "BlipForVisualQuestionAnswering",
    "lavis_albef": "AlbefModel.extract_features",
    "lavis_blip2": "blip2",
    "lavis_blip_feature_extractor": "BlipModel.extract_features",
    "lavis_pos_embed_resize": "blip2",
    "llava": "llava",
    "moco": "moco",
    "open_clip": "clip",
    "open_clip_losses": "hfvlm.losses.contrastive:contrastive_loss",
    "open_flamingo": "flamingo",
    "openai_clip": "clip",
}


def longest(table: dict, case: str):
    """The entry whose key is the longest start of the case's name."""
    keys = [key for key in table if case.startswith(key)]
    return table[max(keys, key=len)] if keys else None


def registered(need: str) -> bool:
    """Whether an architecture, a class of one, a class's method, or a function is there."""
    if ":" in need:
        return callable(load(need))
    if any(row.name == need for row in ARCHITECTURES.values()):
        return True
    name, _, method = need.partition(".")
    paths = [row.classes[name] for row in ARCHITECTURES.values() if name in row.classes]
    return bool(paths) and (not method or hasattr(load(paths[0]), method))


def cases() -> list[Path]:
    found = sorted(path.parent for path in FOLDER.glob("*/outputs.safetensors"))
    assert found, f"HFVLM_GOLDENS={FOLDER}: no case folders there"
    return found


@pytest.mark.parametrize("folder", cases(), ids=lambda folder: folder.name)
def test_reproduces_the_original(folder, monkeypatch, tmp_path):
    case = folder.name
    need, compare = longest(NEEDS, case), longest(COMPARISONS, case)
    if need is None or not registered(need):
        pytest.skip(f"{need or case} is not registered yet")
    assert compare is not None, f"{need} is registered: say how {case} is compared with it"
    golden = Golden(folder)
    compare(golden, monkeypatch, tmp_path)
    golden.finish()


@pytest.mark.parametrize("table", sorted(FOLDER.glob("*/tokenizer_cases.json")), ids=lambda table: table.parent.name)
def test_tokenizes_as_the_original(table):
    golden_clip.tokenizer(table)
