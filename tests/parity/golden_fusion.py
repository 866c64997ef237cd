"""What ALBEF's and BLIP's heads share in their recorded outputs: a training step, and the draws that are replayed."""

from collections.abc import Callable

import torch
from golden import Golden
from torch import nn

from hfvlm import fusion_training
from hfvlm.losses import matching


def tower_fields(config: dict) -> dict:
    """The part of a case's configuration that tensors do not show, as fields of a `FusionConfig`."""
    vision, bert = config["vision"], config["bert_config"]
    names = ("num_attention_heads", "layer_norm_eps", "hidden_act")
    dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {
        "vision_config": {
            "num_attention_heads": vision.get("heads") or vision["num_heads"],
            "layer_norm_eps": vision.get("norm_eps") or vision["layer_norm_eps"],
        },
        "text_config": {name: bert[name] for name in (*names, *dropout)},
    }


class Recorder:
    """Keeps what a step's losses return on the way."""

    def __init__(self, monkeypatch, module, *names: str):
        self.made: dict[str, list] = {name: [] for name in names}
        for name in names:
            monkeypatch.setattr(module, name, self._watch(name, getattr(module, name)))

    def _watch(self, name: str, function: Callable) -> Callable:
        def watched(*args, **kwargs):
            made = function(*args, **kwargs)
            self.made[name].append(made)
            return made

        return watched


def replay_draws(monkeypatch, golden: Golden, step: str) -> None:
    """The recorded negatives: the image of each text is drawn first, then the text of each image."""
    drawn = iter([golden.outputs[f"{step}.neg_image_idx"], golden.outputs[f"{step}.neg_text_idx"]])
    monkeypatch.setattr(matching, "draw", lambda weights: next(drawn))


def training_step(
    golden: Golden, monkeypatch, model: nn.Module, step: str, inputs: dict[str, torch.Tensor], alpha: float
):
    """One forward pass in training of a pretraining or retrieval head; compares what both families record.

    Returns:
        the model's output, before the backward pass.
    """
    replay_draws(monkeypatch, golden, step)
    queued = model.image_queue.ids.clone()
    recorder = Recorder(monkeypatch, fusion_training, "momentum_contrast", "negative_weights")
    outputs = model.train()(**inputs, alpha=alpha)
    monkeypatch.undo()
    contrast = recorder.made["momentum_contrast"][0]
    to_images, to_texts = recorder.made["negative_weights"]
    found = {
        "loss_ita": contrast.loss,
        "loss_i2t": contrast.loss_per_image,
        "loss_t2i": contrast.loss_per_text,
        "loss_itm": outputs.loss_itm,
        "loss_lm": outputs.loss_lm,
        "loss_mlm": outputs.loss_mlm,
        "sim_i2t": contrast.logits_per_image,
        "sim_t2i": contrast.logits_per_text,
        "sim_i2t_queue": contrast.logits_per_image,
        "sim_t2i_queue": contrast.logits_per_text,
        "sim_i2t_m": contrast.teacher_per_image,
        "sim_t2i_m": contrast.teacher_per_text,
        "sim_i2t_targets": contrast.targets_per_image,
        "sim_t2i_targets": contrast.targets_per_text,
        "weights_t2i": to_images,
        "weights_i2t": to_texts,
        "vl_output": outputs.itm_logits,
        "itm_labels": matching.matching_labels(len(outputs.text_embeds), outputs.itm_logits.device),
        "image_feat": outputs.image_embeds,
        "text_feat": outputs.text_embeds,
        "image_embeds_cls": outputs.vision_model_output.last_hidden_state[:, 0],
        "temp_after": model.temp[0],
        "image_queue_after": model.image_queue.features.t(),
        "text_queue_after": model.text_queue.features.t(),
        "queue_ptr_after": model.image_queue.pointer,
        "ptr_queue_after": model.text_queue.pointer,
        "idx_queue_after": model.image_queue.ids[None],
    }
    pushed = (int(model.image_queue.pointer) - len(outputs.text_embeds)) % len(model.image_queue)
    rows = slice(pushed, pushed + len(outputs.text_embeds))
    found["image_feat_m"], found["text_feat_m"] = model.image_queue.features[rows], model.text_queue.features[rows]
    if "image_ids" in inputs:
        found["sim_targets"] = hard_targets(inputs["image_ids"], queued)
        embeds = outputs.image_embeds, outputs.text_embeds
        found["sim_i2t_batch"] = embeds[0] @ embeds[1].t() / model.temp
        found["sim_t2i_batch"] = embeds[1] @ embeds[0].t() / model.temp
    for name, value in found.items():
        if f"{step}.{name}" in golden.outputs:
            if value is None:  # without the teacher's say its similarities are not computed
                golden.leave_out(f"{step}.{name}", "the teacher has no say at alpha 0: its similarities are not made")
            else:
                golden.check(f"{step}.{name}", value)
    for name in ("neg_image_idx", "neg_text_idx"):
        golden.leave_out(f"{step}.{name}", "replayed")
    return outputs


def hard_targets(ids: torch.Tensor, queued: torch.Tensor) -> torch.Tensor:
    """Targets without a teacher, of the batch and of what is in the queue."""
    same = (ids[:, None] == torch.cat([ids, queued])).float()
    return same / same.sum(1, keepdim=True)


def check_gradients(golden: Golden, prefix: str, gradients: dict[str, torch.Tensor]) -> None:
    """Every recorded gradient, by the release's keys."""
    for name in [name for name in golden.outputs if name.startswith(prefix)]:
        golden.check(name, gradients[name.removeprefix(prefix)].reshape(golden.outputs[name].shape))


def check_teacher(golden: Golden, step: str, state: dict[str, torch.Tensor]) -> None:
    """The momentum copies after the step, by the release's keys."""
    prefix = f"{step}.after."
    for name in [name for name in golden.outputs if name.startswith(prefix)]:
        golden.check(name, state[name.removeprefix(prefix)])
