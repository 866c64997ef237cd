"""What the heads that answer questions must reproduce of the original code."""

import golden_albef
import golden_blip_pairs
import torch
from golden import Golden
from golden_albef import check_tokens
from golden_fusion import Recorder, check_gradients, check_teacher

from hfvlm import AlbefForImageClassification, AlbefForImageTextRetrieval, AlbefForTextAssignment, answering
from hfvlm.conversion import convert_albef, convert_blip


def questions(golden: Golden) -> dict[str, torch.Tensor]:
    named = {"pixel_values": "image", "input_ids": "question_ids", "attention_mask": "question_mask"}
    return {ours: golden.inputs[theirs] for ours, theirs in named.items()}


def answers(golden: Golden) -> dict[str, torch.Tensor]:
    """The answers to learn, as many a question as are recorded, and what each weighs."""
    ids, mask = golden.inputs["answer_ids"], golden.inputs["answer_mask"]
    return {
        "labels": ids.masked_fill(mask == 0, -100),
        "answer_counts": golden.inputs.get("n", golden.inputs.get("k")),
        "answer_weights": golden.inputs["weights"],
    }


def learned(golden: Golden, monkeypatch, model, step: str, **options):
    """One forward pass in training; compares the loss, each answer's, and what both towers make."""
    made = Recorder(monkeypatch, answering, "answer_losses", "inputs_of_labels")
    outputs = model.train()(**questions(golden), **answers(golden), **options)
    monkeypatch.undo()
    golden.check(f"{step}.loss", outputs.loss)
    golden.check(f"{step}.answer_loss", made.made["answer_losses"][0])
    check_tokens(golden, f"{step}.answer_logits", outputs.logits, golden.inputs["answer_mask"])
    states, mask = outputs.encoder_last_hidden_state, golden.inputs["question_mask"]
    check_tokens(golden, f"{step}.question_states", states, mask)
    if f"{step}.answer_ids" in golden.outputs:
        ids, pads = made.made["inputs_of_labels"][0], golden.inputs["answer_mask"] == 0
        golden.check(f"{step}.answer_ids", ids)
        golden.check(f"{step}.answer_targets", ids.masked_fill(pads, -100))
    return outputs


def ranked(golden: Golden, model):
    """The list of answers, ranked."""
    ids, mask = golden.inputs["answer_list_ids"], golden.inputs["answer_list_mask"]
    made = model.eval().rank_answers(
        **questions(golden), answer_ids=ids, answer_mask=mask, k=int(golden.inputs["k_test"])
    )
    golden.check("rank.first_token_logits", made.first_token_logits)
    return made


def blip(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_VQA.forward`: in training, ranking, and generating."""
    model = golden_blip_pairs.build(golden)
    outputs = learned(golden, monkeypatch, model, "train")
    asked = questions(golden)
    golden.check("train.question_ids", model.matching_ids(asked["input_ids"], asked["attention_mask"]))
    outputs.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    check_gradients(golden, "train.grad.", convert_blip.to_release_keys(gradients, "answering"))

    made = ranked(golden, model)
    golden.check("rank.topk_ids_first_token", made.candidates)
    golden.check("rank.topk_probs_first_token", made.first_token_probabilities)
    golden.check("rank.log_probs_sum", made.log_likelihoods)
    golden.check("rank.max_ids", made.answers[:, 0])

    written = model.generate(
        **asked, **golden.config["generate"], return_dict_in_generate=True, output_scores=True, do_sample=False
    )
    golden.check("generate.sequences", written.sequences)
    golden.check("generate.sequences_scores", written.sequences_scores)


def albef(golden: Golden, monkeypatch, tmp_path) -> None:
    """ALBEF's `forward`: in training with and without distillation, and ranking."""
    for step in sorted({name.split(".")[0] for name in golden.outputs if name.endswith(".answer_loss")}):
        model = golden_albef.build(golden)
        assert model.config.decoder_layers == golden.config["decoder_config"]["num_hidden_layers"]
        taught = Recorder(monkeypatch, model.teacher_lm_head, "forward")
        outputs = learned(golden, monkeypatch, model, step, alpha=0.4 if step == "a04" else 0.0)
        if step == "a04":
            mask = golden.inputs["answer_mask"][:, :-1]
            check_tokens(golden, f"{step}.logits_m", taught.made["forward"][0][:, :-1], mask)
        else:
            golden.leave_out(f"{step}.logits_m", "the teacher has no say at alpha 0: it scores no words")
        check_teacher(golden, step, convert_albef.to_release_keys(model.state_dict(), "answering"))
        outputs.loss.backward()
        if any(name.startswith(f"{step}.grad.") for name in golden.outputs):
            check_gradients(golden, f"{step}.grad.", golden_albef.gradients_of(model, "answering"))
    made = ranked(golden, golden_albef.build(golden))
    first = made.first_token_logits.softmax(-1)[:, golden.inputs["answer_list_ids"][:, 1]]
    golden.check("rank.prob_first_token", first)
    golden.check("rank.answer_token_nll", -made.log_likelihoods.reshape(-1, 1))
    golden.check("rank.log_probs_sum", made.log_likelihoods + made.first_token_probabilities.log())
    golden.check("rank.topk_ids", made.answers)
    golden.check("rank.topk_probs", made.scores)


def albef_from_pretraining(golden: Golden, monkeypatch, tmp_path) -> None:
    """What each of ALBEF's finetuning scripts starts from, of one pretraining checkpoint."""
    answering_head = golden_albef.build(golden, head="answering").eval()
    asked = {**questions(golden), "pixel_values": golden.inputs["question_image"]}
    ids, mask = golden.inputs["answer_list_ids"], golden.inputs["answer_list_mask"]
    made = answering_head.rank_answers(**asked, answer_ids=ids, answer_mask=mask, k=int(golden.inputs["k_test"]))
    golden.check("VQA.topk_ids", made.answers)
    golden.check("VQA.topk_probs", made.scores)
    golden.check("VQA.first_token_logits", made.first_token_logits)

    golden_albef.build(golden).save_pretrained(tmp_path)
    batch = {"pixel_values": golden.inputs["image"], **golden_albef.texts(golden)}
    retrieval = AlbefForImageTextRetrieval.from_pretrained(tmp_path)
    outputs = retrieval(**batch)
    golden.check("Retrieval.sims", retrieval.temp.detach() * outputs.logits_per_image)
    golden.check("Retrieval.itm_logits", outputs.itm_logits)

    entailment = AlbefForImageClassification.from_pretrained(tmp_path, num_labels=3)
    for name, part in (("cls_head", entailment.cls_head), ("cls_head_m", entailment.teacher_cls_head)):
        start = f"VE.filled.{name}."
        filled = {key.removeprefix(start): golden.outputs[key] for key in golden.outputs if key.startswith(start)}
        part.load_state_dict(filled)
        for key in filled:
            golden.leave_out(start + key, "an input here")
    golden.check("VE.prediction", entailment(**batch).logits)
    golden.check("VE.image_embeds_m_cls", entailment.teacher_vision_model(batch["pixel_values"]).pooler_output)

    assignment = AlbefForTextAssignment.from_pretrained(tmp_path)
    for name in ("weight", "bias"):
        filled = f"Pretrain_nlvr.filled.ta_head.{name}"
        getattr(assignment.ta_head, name).data.copy_(golden.outputs[filled])
        golden.leave_out(filled, "an input here")
    own = torch.arange(len(batch["pixel_values"]))
    golden.check("Pretrain_nlvr.pred", assignment(**batch, image_pairs=torch.stack([own, own.flip(0)], dim=1)).logits)
