"""What ALBEF's heads must reproduce of the original code."""

import torch
from golden import Golden
from golden_blip_pairs import evaluation, steps, texts
from golden_fusion import Recorder, check_gradients, check_teacher, tower_fields, training_step

from hfvlm.conversion.convert_albef import convert, to_release_keys
from hfvlm.models.albef import pretraining_albef


def build(golden: Golden, **options):
    """The case's head, with what its tensors do not show."""
    config = golden.config
    told = {
        **tower_fields(config),
        **{name: config[name] for name in ("momentum", "mlm_probability") if name in config},
    }
    return convert(golden.checkpoint, config=told, **options)


def gradients_of(model, head: str) -> dict[str, torch.Tensor]:
    return to_release_keys(
        {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}, head
    )


def pretraining(golden: Golden, monkeypatch, tmp_path) -> None:
    """`ALBEF.forward` of pretraining: two alphas, gradients, a second step on what the first left, features."""
    for step, alpha in steps(golden).items():
        model = build(golden)
        pretraining_step(golden, monkeypatch, model, step, "", alpha)
        if step == "a04":
            model._updater._seen = None  # the original moves its teacher at every pass, also without a step between
            pretraining_step(golden, monkeypatch, model, "a04_step2", "2", alpha)
    model = build(golden).eval()
    inputs = {"pixel_values": golden.inputs["image"], **texts(golden)}
    features = model.extract_features(inputs)
    mask = inputs["attention_mask"]
    for name, value in (
        ("image_embeds", features.image_embeds),
        ("text_embeds", features.text_embeds),
        ("fusion", features.multimodal_embeds),
        ("multi_modal", features.multimodal_embeds),
    ):
        check_tokens(golden, f"feat.{name}", value, mask if name != "image_embeds" else None)


def check_tokens(golden: Golden, name: str, value: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Compares states or scores of real tokens: the original numbers padding too."""
    if mask is not None:
        value = torch.where(mask[..., None].bool(), value, golden.outputs[name])
    golden.check(name, value)


def pretraining_step(golden: Golden, monkeypatch, model, step: str, suffix: str, alpha: float) -> None:
    inputs = {"pixel_values": golden.inputs[f"image{suffix}"], **texts(golden, suffix)}
    recorded = {name: golden.outputs[f"{step}.draw_{name}"] for name in DRAWS}
    flips = iter([recorded[name].float() for name in DRAWS[:3]])
    monkeypatch.setattr(torch, "bernoulli", lambda *args, **kwargs: next(flips))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: recorded["random_words"])
    made = Recorder(monkeypatch, pretraining_albef, "mask_tokens")
    states, taught = [], []
    hooks = [
        model.text_model.register_forward_hook(lambda module, args, out: states.append(out.last_hidden_state)),
        model.teacher_text_model.register_forward_hook(lambda module, args, out: taught.append(out.last_hidden_state)),
    ]
    outputs = training_step(golden, monkeypatch, model, step, inputs, alpha)
    for hook in hooks:
        hook.remove()
    ids, labels = made.made["mask_tokens"][0]
    golden.check(f"{step}.mlm_input_ids", ids)
    golden.check(f"{step}.mlm_labels", labels)
    for name in DRAWS:
        golden.leave_out(f"{step}.draw_{name}", "replayed")
    mask = inputs["attention_mask"]
    check_tokens(golden, f"{step}.mlm_logits", model.lm_head(states[-1][-len(ids) :]), mask)
    if alpha:
        check_tokens(golden, f"{step}.logits_m", model.teacher_lm_head(taught[-1]), mask)
    else:
        golden.leave_out(f"{step}.logits_m", "the teacher has no say at alpha 0: it scores no words")
    check_teacher(golden, step, to_release_keys(model.state_dict(), "pretraining"))
    if any(name.startswith(f"{step}.grad.") for name in golden.outputs):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        outputs.loss.backward()
        check_gradients(golden, f"{step}.grad.", gradients_of(model, "pretraining"))
        model.zero_grad()
        model.load_state_dict(state)


#: in the order of drawing
DRAWS = ("bernoulli_mask", "bernoulli_replace80", "bernoulli_random50", "random_words")


def retrieval(golden: Golden, monkeypatch, tmp_path) -> None:
    """`ALBEF.forward` of retrieval with distillation and without, and the scores of an evaluation."""
    for step, alpha in steps(golden).items():
        model = build(golden)
        inputs = {"pixel_values": golden.inputs["image"], **texts(golden), "image_ids": golden.inputs["idx"]}
        outputs = training_step(golden, monkeypatch, model, step, inputs, 0.0 if step == "nodistill" else alpha)
        check_teacher(golden, step, to_release_keys(model.state_dict(), "retrieval"))
        outputs.loss.backward()
        if any(name.startswith(f"{step}.grad.") for name in golden.outputs):
            check_gradients(golden, f"{step}.grad.", gradients_of(model, "retrieval"))
    evaluation(golden, build(golden))


def lavis_features(golden: Golden, monkeypatch, tmp_path) -> None:
    """LAVIS's `extract_features`, with the projections."""
    model = build(golden).eval()
    ids, mask = golden.outputs["tokens.input_ids"], golden.outputs["tokens.attention_mask"]
    golden.leave_out("tokens.input_ids", "the tokenizer's, an input here")
    golden.leave_out("tokens.attention_mask", "the tokenizer's, an input here")
    inputs = {"pixel_values": golden.inputs["image"], "input_ids": ids, "attention_mask": mask}
    for mode in ("image", "text", "multimodal"):
        made = model.extract_features(inputs, mode)
        for name in [name for name in golden.outputs if name.startswith(f"{mode}.")]:
            value = made[name.removeprefix(f"{mode}.")]
            check_tokens(golden, name, value, mask if value.shape[:2] == mask.shape else None)
