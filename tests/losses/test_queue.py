"""The negative queue of a model: filled, saved and loaded with it. (What `push` writes: test_distributed.)"""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfvlm.losses.queue import NegativeQueue


class Model(PreTrainedModel):
    """A model that owns a queue."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.layer = nn.Linear(4, 4)
        self.queue = NegativeQueue(6, 4, with_ids=True)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NegativeQueue):
            module.reset_parameters()


def test_starts_with_random_directions_of_no_image():
    torch.manual_seed(0)
    queue = Model(PreTrainedConfig()).queue
    assert len(queue) == 6
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(6))
    assert queue.features.unique(dim=0).shape == (6, 4)
    assert queue.ids.tolist() == [-100] * 6
    assert queue.pointer.tolist() == [0]


def test_is_saved_with_the_model(tmp_path):
    model = Model(PreTrainedConfig())
    model.queue.push(torch.arange(16.0).view(4, 4), torch.arange(4))
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, msg=name)
    assert again.queue.pointer.tolist() == [4]


def test_is_filled_when_a_checkpoint_has_none(tmp_path):
    """`from_pretrained` builds on the meta device: what no file holds is whatever memory held."""
    model = Model(PreTrainedConfig())
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("queue.")}
    model.save_pretrained(tmp_path, state_dict=weights)
    queue = Model.from_pretrained(tmp_path).queue
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(6))
    assert queue.ids.tolist() == [-100] * 6
    assert queue.pointer.tolist() == [0]


def test_features_of_another_precision_are_taken():
    queue = NegativeQueue(3, 2)
    queue.push(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert queue.features.dtype == torch.float32
    assert queue.features[:2].tolist() == [[1.0, 1.0]] * 2
    assert not queue.features.requires_grad


def test_rows_without_ids_are_unknown():
    queue = NegativeQueue(3, 2, with_ids=True)
    queue.push(torch.ones(2, 2), torch.tensor([5, 6]))
    queue.push(torch.ones(2, 2))
    assert queue.ids.tolist() == [-100, 6, -100]


@pytest.mark.parametrize(
    "message, call",
    [
        ("size and dim must be at least 1, got 0 and 4", lambda: NegativeQueue(0, 4)),
        (r"features must be \[n, 4\], got \[2, 3\]", lambda: NegativeQueue(5, 4).push(torch.ones(2, 3))),
        ("keeps no ids", lambda: NegativeQueue(5, 4).push(torch.ones(2, 4), torch.arange(2))),
        (r"ids must be \[2\]", lambda: NegativeQueue(5, 4, with_ids=True).push(torch.ones(2, 4), torch.arange(3))),
    ],
)
def test_bad_input_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
