"""What BLIP's pretraining, retrieval and feature heads must reproduce of the original code."""

import torch
from golden import Golden
from golden_fusion import Recorder, check_gradients, check_teacher, tower_fields, training_step

from hfvlm.conversion.convert_blip import convert, to_release_keys
from hfvlm.fusion import first_tokens
from hfvlm.reranking import rerank_scores


def build(golden: Golden, **options):
    """The case's head, with what its tensors do not show."""
    told = tower_fields(golden.config)
    for name in ("momentum",):
        if name in golden.config:
            told[name] = golden.config[name]
    return convert(golden.checkpoint, config=told, **options)


def texts(golden: Golden, suffix: str = "", prefix: str = "") -> dict[str, torch.Tensor]:
    return {name: golden.inputs[f"{prefix}{name}{suffix}"] for name in ("input_ids", "attention_mask")}


def steps(golden: Golden) -> dict[str, float]:
    """The recorded passes on a freshly loaded model, and their alpha."""
    names = {name.split(".")[0] for name in golden.outputs if name.endswith(".loss_itm")}
    return {name: 0.0 if name == "a0" else 0.4 for name in sorted(names) if "step2" not in name}


def gradients_of(model, head: str) -> dict[str, torch.Tensor]:
    return to_release_keys(
        {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}, head
    )


def pretraining(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_Pretrain`: two alphas, gradients, and a second step on what the first left."""
    for step, alpha in steps(golden).items():
        model = build(golden)
        pretraining_step(golden, monkeypatch, model, step, "", alpha)
        if step == "a04":
            model._updater._seen = None  # the original moves its teacher at every pass, also without a step between
            pretraining_step(golden, monkeypatch, model, "a04_step2", "2", alpha)


def pretraining_step(golden: Golden, monkeypatch, model, step: str, suffix: str, alpha: float) -> None:
    inputs = {"pixel_values": golden.inputs[f"image{suffix}"], **texts(golden, suffix)}
    words, recorder = [], Recorder(monkeypatch, model, "matching_ids", "_more_rows")
    model.text_model.register_forward_hook(lambda module, args, made: words.append(made.last_hidden_state))
    outputs = training_step(golden, monkeypatch, model, step, inputs, alpha)
    golden.check(f"{step}.encoder_input_ids", recorder.made["matching_ids"][0])
    started = recorder.made["_more_rows"][0].input_ids
    golden.check(f"{step}.decoder_input_ids", started)
    golden.check(f"{step}.decoder_targets", recorder.made["_more_rows"][0].labels)
    logits = model.lm_head(words[-1][-len(started) :, :12])
    mask = inputs["attention_mask"][:, :12, None].bool()  # over padding the original attends as it happens to
    theirs = golden.outputs[f"{step}.decoder_logits_first12"]
    golden.check(f"{step}.decoder_logits_first12", torch.where(mask, logits, theirs))
    model.text_model._forward_hooks.clear()
    check_teacher(golden, step, to_release_keys(model.state_dict(), "pretraining"))
    if any(name.startswith(f"{step}.grad.") for name in golden.outputs):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        outputs.loss.backward()
        check_gradients(golden, f"{step}.grad.", gradients_of(model, "pretraining"))
        model.zero_grad()
        model.load_state_dict(state)


def retrieval(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_Retrieval`: id-aware contrast, negatives by the student, and the scores of an evaluation."""
    for step, alpha in steps(golden).items():
        model = build(golden)
        inputs = {"pixel_values": golden.inputs["image"], **texts(golden), "image_ids": golden.inputs["idx"]}
        recorder = Recorder(monkeypatch, model, "matching_ids")
        outputs = training_step(golden, monkeypatch, model, step, inputs, alpha)
        golden.check(f"{step}.encoder_input_ids", recorder.made["matching_ids"][0])
        check_teacher(golden, step, to_release_keys(model.state_dict(), "retrieval"))
        outputs.loss.backward()
        if any(name.startswith(f"{step}.grad.") for name in golden.outputs):
            check_gradients(golden, f"{step}.grad.", gradients_of(model, "retrieval"))
    evaluation(golden, build(golden))


def evaluation(golden: Golden, model) -> None:
    """Every pair's similarity and judgement, and the scores of the `k` best."""
    images, batch = golden.inputs["eval_image"], texts(golden, prefix="eval_")
    with torch.no_grad():
        outputs = model.eval()(images, **batch)
        tokens = outputs.vision_model_output.last_hidden_state
        count, rows = len(images), len(batch["input_ids"])
        index = torch.arange(count).repeat_interleave(rows)
        every = {name: value.repeat(count, 1) for name, value in batch.items()}
        read = outputs.text_model_output.last_hidden_state.repeat(count, 1, 1)
        logits = model.match(tokens, **every, memory_index=index, text_embeds=read).view(count, rows, 2)
    golden.check("eval.image_embeds", outputs.image_embeds)
    golden.check("eval.text_embeds", outputs.text_embeds)
    similarity = model.temp.detach() * outputs.logits_per_image
    golden.check("eval.sims_matrix", similarity)
    golden.check("eval.itm_logits", logits)
    if "eval.text_ids" in golden.outputs:
        golden.check("eval.text_ids", model.matching_ids(*batch.values()))
    for k in {name.split(".")[0].removeprefix("eval_k") for name in golden.outputs if name.startswith("eval_k")}:
        tables = rerank_scores(model, tokens, *batch.values(), similarity, int(k))
        for way, table in zip(("i2t", "t2i"), tables):
            golden.check(f"eval_k{k}.score_matrix_{way}", table)


def itm(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_ITM`: its forward leaves [CLS] in place, training and evaluation put [ENC] there."""
    model = build(golden).eval()
    batch = texts(golden)
    judged(golden, model, golden.inputs["image"], batch)
    outputs = model(golden.inputs["image"], **batch)
    golden.check("image_embeds", outputs.vision_model_output.last_hidden_state)
    golden.check("itc.image_feat", outputs.image_embeds)
    golden.check("itc.text_feat", outputs.text_embeds)
    golden.check("itm_enc.logits", outputs.itm_logits)


def judged(golden: Golden, model, image: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
    """The judgement of `BLIP_ITM.forward`, whose texts start with [CLS]."""
    tokens = model.get_image_features(image).last_hidden_state
    states = model.text_model(**batch, encoder_hidden_states=tokens).last_hidden_state
    first = first_tokens(states, batch["attention_mask"])
    golden.check("itm.logits", model.itm_head(first))
    if "itm.last_hidden_cls" in golden.outputs:
        golden.check("itm.last_hidden_cls", first)
    golden.check("itc.sim", model.temp.detach() * model(image, **batch).logits_per_image)


def features(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_Base.forward` in its three modes."""
    model = build(golden).eval()
    image, ids = golden.inputs["image"], golden.inputs["input_ids"]
    batch = {"pixel_values": image, **texts(golden)}
    golden.check("multimodal.input_ids", model.matching_ids(ids, None))
    single = {"pixel_values": image[:1], "input_ids": golden.inputs["single_input_ids"]}
    for prefix, inputs in (("", batch), ("single.", single)):
        for mode in ("image", "text", "multimodal"):
            golden.check(f"{prefix}{mode}", model.extract_features(inputs, mode)[f"{mode}_embeds"])


def lavis_features(golden: Golden, monkeypatch, tmp_path) -> None:
    """LAVIS's `extract_features`, with the projections."""
    model = build(golden).eval()
    ids, mask = golden.outputs["tokens.input_ids"], golden.outputs["tokens.attention_mask"]
    golden.leave_out("tokens.input_ids", "the tokenizer's, an input here")
    golden.leave_out("tokens.attention_mask", "the tokenizer's, an input here")
    golden.check("enc_token_id", torch.tensor(model.config.enc_token_id))
    golden.check("dec_token_id", torch.tensor(model.config.text_config.bos_token_id))
    inputs = {"pixel_values": golden.inputs["image"], "input_ids": ids, "attention_mask": mask}
    for mode in ("image", "text", "multimodal"):
        made = model.extract_features(inputs, mode)
        for name in [name for name in golden.outputs if name.startswith(f"{mode}.")]:
            value = made[name.removeprefix(f"{mode}.")]
            if value.shape[:2] == mask.shape:  # the original numbers padding too
                value = torch.where(mask[..., None].bool(), value, golden.outputs[name])
            golden.check(name, value)
