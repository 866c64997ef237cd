"""Classification: one class an image, several, or a number."""

import torch
from torch import nn
from transformers import PreTrainedConfig


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: PreTrainedConfig,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The loss that `config.problem_type` names; if it names none, the labels' form tells, as in transformers.

    Args:
        logits: `[batch, num_labels]`.
        labels: `[batch]` class numbers (-100: not learned), `[batch, num_labels]` floats between 0 and 1 for several
            classes each, `[batch]` or `[batch, 1]` floats to regress where `num_labels` is 1.
        num_items_in_batch: labels in the whole accumulated batch, as `Trainer` counts them; the loss is then the sum
            over this batch's divided by it, else their mean.

    Raises:
        ValueError: labels that do not fit the logits, class numbers that do not exist, or floats for several classes
            that are not between 0 and 1.
    """
    classes = logits.shape[1]
    kind = config.problem_type
    if kind is None:
        whole = not labels.is_floating_point()
        kind = "regression" if classes == 1 else "single_label_classification"
        if classes > 1 and not whole:
            kind = "multi_label_classification"
    expected = (len(logits),) if kind == "single_label_classification" else tuple(logits.shape)
    if kind == "regression" and classes == 1:
        labels = labels.reshape(-1, 1)
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels must have shape {list(expected)} for {kind}, got {list(labels.shape)}")
    count, checks = labels.numel(), labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if kind == "regression":
        total = nn.functional.mse_loss(logits.float(), labels.float(), reduction="sum")
    elif kind == "multi_label_classification":
        if checks and not ((labels >= 0) & (labels <= 1)).all():
            raise ValueError(
                f"labels for {kind} must be between 0 and 1, got {labels.min().item()} to {labels.max().item()}"
            )
        total = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="sum")
    else:
        learned = labels != -100
        count = learned.sum().clamp(min=1)
        if checks:
            wrong = labels[learned & ((labels < 0) | (labels >= classes))]
            if len(wrong):
                raise ValueError(
                    f"labels hold {wrong[0].item()}, this model has classes 0 to {classes - 1} (num_labels)"
                )
        total = nn.functional.cross_entropy(
            logits.float(), labels.long(), label_smoothing=label_smoothing, reduction="sum"
        )
    return total / (count if num_items_in_batch is None else num_items_in_batch)
