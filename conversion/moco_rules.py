"""MoCo's key rules, and what a release's shapes tell of a configuration.

Three forms: versions 1 and 2 (https://github.com/facebookresearch/moco: `encoder_q`, `encoder_k`, `queue`), version 3
(https://github.com/facebookresearch/moco-v3: `base_encoder`, `momentum_encoder`, `predictor`), and the encoder with a
linear classifier that the linear probes of both write.
"""

from collections.abc import Mapping
from typing import Any

import torch

from hfvlm.conversion.rules import Drop, Fresh, Rename, Rule
from hfvlm.conversion.towers import Shapes, resnet_geometry, resnet_rules, vit_geometry, vit_rules


#: form -> prefix of its encoder; the first that a checkpoint has is its form
FORMS = {"queue": "encoder_q.", "symmetric": "base_encoder.", "probe": ""}
#: version 3's ViTs have 12 heads whatever their width
V3_HEADS = {384: 12, 768: 12}


def form_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Which of `FORMS` a checkpoint has.

    Raises:
        ValueError: none of them.
    """
    for form, prefix in FORMS.items():
        if any(f"{prefix}{name}" in tensors for name in ("conv1.weight", "patch_embed.proj.weight")):
            return form
    raise ValueError(
        "not a MoCo checkpoint: expected encoder_q.* (versions 1 and 2), base_encoder.* (version 3) or a bare ResNet "
        f"or ViT (linear probe), found {', '.join(list(tensors)[:3])}, ..."
    )


def _is_vit(tensors: Mapping[str, torch.Tensor]) -> bool:
    return f"{FORMS[form_of(tensors)]}patch_embed.proj.weight" in tensors


def _encoder(vit: bool, source: str, target: str) -> tuple[Rule, ...]:
    return vit_rules(source, target) if vit else resnet_rules(source, target)


def _head(vit: bool) -> str:
    """What the released encoders call the layers behind the pooled vector."""
    return "head" if vit else "fc"


def pretraining_rules(objective: str, vit: bool, layers: int) -> tuple[Rule, ...]:
    """A pretraining checkpoint -> `MocoForPreTraining`; the queue's keys are a row each already.

    Args:
        objective: the form, as `MocoConfig.objective` calls it.
        vit: the encoder is a ViT.
        layers: of the projection; a single one is not numbered in the source.
    """
    copies = (FORMS[objective], "encoder_k." if objective == "queue" else "momentum_encoder.")
    rules = []
    for source, prefix in zip(copies, ("", "teacher_")):
        rules += _encoder(vit, source, f"{prefix}vision_model.")
        single = objective == "queue" and layers == 1
        theirs = f"{source}{_head(vit)}." + ("{p}" if single else "{i}.{p}")
        rules.append(Rename(theirs, f"{prefix}projection." + ("0.{p}" if single else "{i}.{p}")))
    if objective == "queue":
        rules += [Rename("queue", "queue.features"), Rename("queue_ptr", "queue.pointer")]
    else:
        rules.append(Rename("predictor.{i}.{p}", "predictor.{i}.{p}"))
    return (*rules, Fresh("teacher_step", "the release keeps its schedule of the momentum in the training script"))


def rules_of(tensors: Mapping[str, torch.Tensor], part: str, layers: int) -> tuple[Rule, ...]:
    """The table for a checkpoint.

    Args:
        part: "model", for what the checkpoint holds as a whole, or "vision", for the encoder alone.
        layers: of the projection.
    """
    form, vit = form_of(tensors), _is_vit(tensors)
    if part == "vision":
        beside = "not part of the encoder"
        dropped = [f"{FORMS[form]}{_head(vit)}.{{*rest}}", "predictor.{*rest}", "queue", "queue_ptr"]
        dropped += ["encoder_k.{*rest}", "momentum_encoder.{*rest}"]
        return (*_encoder(vit, FORMS[form], ""), *(Drop(pattern, beside) for pattern in dropped))
    if form == "probe":
        return (*_encoder(vit, "", "vision_model."), Rename(f"{_head(vit)}.{{p}}", "classifier.{p}"))
    return pretraining_rules(form, vit, layers)


def release_fields(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of a `MocoConfig` that a checkpoint's shapes tell, and its release's defaults of what they do not."""
    form, vit = form_of(tensors), _is_vit(tensors)
    prefix = FORMS[form]
    if vit:
        vision = {"model_type": "hfvlm_vit_tower", **vit_geometry(tensors, prefix)}
        vision.pop("num_attention_heads", None)
        if vision.get("hidden_size") in V3_HEADS:
            vision["num_attention_heads"] = V3_HEADS[vision["hidden_size"]]
    else:
        vision = resnet_geometry(tensors, prefix)
    fields, shapes = {"vision_config": vision}, Shapes(tensors, f"{prefix}{_head(vit)}.")
    if form == "probe":
        classes = shapes.size("weight", 0)
        return fields if classes is None else {**fields, "num_labels": classes}
    sizes = [shapes.size(f"{n}.weight", 0) for n in range(20) if shapes.size(f"{n}.weight", 1) is not None]
    if not sizes:  # one layer, not numbered
        sizes = [shapes.size("weight", 0)]
    fields.update(objective=form, projection_dim=sizes[-1], projection_layers=len(sizes))
    if len(sizes) > 1:
        fields["projection_hidden_size"] = sizes[0]
    if form == "queue":
        fields.update(temperature=0.07 if len(sizes) == 1 else 0.2, momentum=0.999)
        fields["queue_size"] = Shapes(tensors, "").size("queue", 0)
    else:
        fields.update(temperature=0.2 if vit else 1.0, momentum=0.99)
        fields["predictor_norm"] = "predictor.4.running_mean" in tensors
    return {name: value for name, value in fields.items() if value is not None}
