"""The classification loss's three kinds, and which labels -100 leaves out."""

import pytest
import torch
from torch import nn

from hfvlm import VitConfig
from hfvlm.losses.classification import classification_loss


LOGITS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]])


def config(classes: int = 3, kind: str | None = None) -> VitConfig:
    return VitConfig.variant("tiny", num_labels=classes, problem_type=kind)


def test_minus_100_is_no_class_but_a_number():
    labels = torch.tensor([2, -100])
    expected = nn.functional.cross_entropy(LOGITS[:1], labels[:1])
    torch.testing.assert_close(classification_loss(LOGITS, labels, config()), expected)
    for targets in (torch.tensor([-100.0, 1.0]), torch.tensor([-100.0, -100.0])):
        expected = nn.functional.mse_loss(LOGITS[:, 0], targets)
        torch.testing.assert_close(classification_loss(LOGITS[:, :1], targets, config(1)), expected)


def test_several_classes_are_shares():
    labels = torch.tensor([[0.0, 1.0, 0.3], [1.0, 1.0, 0.0]])
    expected = nn.functional.binary_cross_entropy_with_logits(LOGITS, labels)
    torch.testing.assert_close(classification_loss(LOGITS, labels, config()), expected)
    labels[1] = -100.0
    with pytest.raises(ValueError, match="labels for multi_label.* between 0 and 1, got -100.0 to 1.0"):
        classification_loss(LOGITS, labels, config())
    with pytest.raises(ValueError, match="labels for multi_label.* between 0 and 1, got 0 to 2"):
        classification_loss(LOGITS, labels.new_tensor([[0, 2, 1]] * 2).long(), config(3, "multi_label_classification"))
