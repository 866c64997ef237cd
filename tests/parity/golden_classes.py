"""What the heads that choose among classes must reproduce: entailment, and NLVR2 by ALBEF and by BLIP."""

from collections.abc import Callable

import torch
from golden import Golden
from golden_albef import build as build_albef
from golden_albef import check_tokens
from golden_blip_pairs import build as build_blip
from golden_blip_pairs import texts
from golden_fusion import Recorder, check_gradients, check_teacher, tower_fields

import hfvlm
from hfvlm.conversion import convert_albef, convert_blip
from hfvlm.conversion.checkpoint import read_checkpoint
from hfvlm.losses import text_assignment
from hfvlm.models.albef import assignment_albef


def inputs_of(golden: Golden) -> dict[str, torch.Tensor]:
    """Pixels and texts; of two images a text, the originals take all first ones and then all second."""
    batch, image = texts(golden), golden.inputs["image"]
    rows = len(batch["input_ids"])
    if len(image) == 2 * rows:
        return {"pixel_values": image[:rows], "pixel_values_second": image[rows:], **batch}
    return {"pixel_values": image, **batch}


def passes(golden: Golden, monkeypatch, model: torch.nn.Module, step: str, alpha: float):
    """One pass in training; compares the loss, the logits, the states and the teacher's logits."""
    taught = []
    teach = model._teach
    monkeypatch.setattr(model, "_teach", lambda *args: taught.append(teach(*args)) or taught[-1])
    batch = inputs_of(golden)
    outputs = model.train()(**batch, labels=golden.inputs["targets"], alpha=alpha)
    golden.check(f"{step}.loss", outputs.loss)
    golden.check(f"{step}.prediction", outputs.logits)
    check_tokens(golden, f"{step}.last_hidden_state", outputs.last_hidden_state, batch["attention_mask"])
    if f"{step}.prediction_m" in golden.outputs:
        if alpha:
            golden.check(f"{step}.prediction_m", taught[0])
        else:
            golden.leave_out(f"{step}.prediction_m", "the teacher has no say at alpha 0: it judges nothing")
    return outputs


def distilled(golden: Golden, monkeypatch, tmp_path) -> None:
    """ALBEF's entailment and NLVR2: without distillation and with it at two alphas."""
    release = read_checkpoint(golden.checkpoint).tensors
    for step, alpha in (("nodistill", 0.0), ("a0", 0.0), ("a04", 0.4)):
        model = build_albef(golden)
        head = convert_albef.head_of(release)

        def keys(tensors: dict[str, torch.Tensor], head: str = head) -> dict[str, torch.Tensor]:
            return convert_albef.to_release_keys(tensors, head, release)

        outputs = passes(golden, monkeypatch, model, step, alpha)
        check_teacher(golden, step, keys(model.state_dict()))
        outputs.loss.backward()
        if any(name.startswith(f"{step}.grad.") for name in golden.outputs):
            check_gradients(golden, f"{step}.grad.", gradients_of(model, keys))
    golden.check("eval.prediction", build_albef(golden).eval()(**inputs_of(golden)).logits)


def assigned(golden: Golden, monkeypatch, tmp_path) -> None:
    """The text assignment before NLVR2, one pass with the recorded draws."""
    model = build_albef(golden).train()
    release = read_checkpoint(golden.checkpoint).tensors
    replay_pairs(golden, monkeypatch)
    made = Recorder(monkeypatch, assignment_albef, "assignment_weights", "draw_pairs")
    outputs = model(**inputs_of(golden))
    monkeypatch.undo()
    golden.check("tpt.weights", made.made["assignment_weights"][0])
    golden.check("tpt.labels", made.made["draw_pairs"][0][1])
    for i in (0, 1):
        golden.check(f"tpt.image{i}_idx", outputs.image_pairs[:, i])
    golden.check("tpt.pred", outputs.logits)
    golden.check("tpt.loss", outputs.loss)
    outputs.loss.backward()
    head = convert_albef.head_of(release)
    gradients = gradients_of(model, lambda tensors: convert_albef.to_release_keys(tensors, head, release))
    check_gradients(golden, "tpt.grad.", gradients)


def replay_pairs(golden: Golden, monkeypatch) -> None:
    """The original draws text by text: whether the own image is shown, then another and the slot, or two others."""
    names = sorted(name for name in golden.outputs if name.startswith("tpt.draw_"))
    recorded = iter([golden.outputs[name] for name in names])
    kinds, slots, others = [], [], []
    for _ in golden.inputs["image"]:
        kinds.append(next(recorded))
        drawn = next(recorded)
        others.append(drawn.expand(2))
        slots.append(next(recorded) if len(drawn) == 1 else torch.zeros(1))
    assert next(recorded, None) is None
    flips, drawn = torch.stack([torch.cat(kinds), torch.cat(slots)]), iter(torch.stack(others, dim=1))
    monkeypatch.setattr(text_assignment, "draw", lambda weights: next(drawn))
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: flips)
    for name in names:
        golden.leave_out(name, "replayed")


def gradients_of(model: torch.nn.Module, keys: Callable) -> dict[str, torch.Tensor]:
    return keys({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def merged(golden: Golden, monkeypatch, tmp_path) -> None:
    """BLIP's NLVR2."""
    model = build_blip(golden)
    batch = inputs_of(golden)
    golden.check("train.input_ids", model.matching_ids(batch["input_ids"], batch["attention_mask"]))
    outputs = passes(golden, monkeypatch, model, "train", 0.0)
    outputs.loss.backward()
    check_gradients(
        golden, "train.grad.", gradients_of(model, lambda tensors: convert_blip.to_release_keys(tensors, "reasoning"))
    )
    golden.check("eval.prediction", model.eval()(**batch).logits)


def merged_from_base(golden: Golden, monkeypatch, tmp_path) -> None:
    """BLIP's NLVR2 from a model that reads one image: the second cross-attention starts as the first."""
    build_blip(golden, output=tmp_path / "base")
    model = hfvlm.BlipForVisualReasoning.from_pretrained(tmp_path / "base").eval()
    filled = {name: golden.outputs[f"filled.{name}"] for name in golden.config["texts"]["missing_keys"]}
    state = {**convert_blip.to_release_keys(model.state_dict(), "reasoning"), **filled}
    for name in [name for name in golden.outputs if name.startswith("after.")]:
        golden.check(name, state[name.removeprefix("after.")])
    for name in filled:
        golden.leave_out(f"filled.{name}", "what a fresh head got, taken over")
    model = convert_blip.convert(state, config=tower_fields(golden.config))
    golden.check("eval.prediction", model(**inputs_of(golden)).logits)


def resized(golden: Golden, monkeypatch, tmp_path) -> None:
    """An entailment model loaded at another image size."""
    model = build_albef(golden, image_size=golden.config["image_size_model"]).eval()
    golden.check("visual_encoder.pos_embed", model.vision_model.position_embedding)
    golden.check("visual_encoder_m.pos_embed", model.teacher_vision_model.position_embedding)
    batch = inputs_of(golden)
    golden.check("image_embeds", model.vision_model(batch["pixel_values"]).last_hidden_state)
    golden.check("prediction", model(**batch).logits)
