"""The momentum teacher moves once for every change of the student's weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hfvlm.losses.momentum import MomentumUpdater, momentum_copy


class Student(nn.Module):
    """A layer and a batch norm with their momentum copies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.teacher = momentum_copy(self.encoder)
        self.updater = MomentumUpdater()
        self.moves = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.moves += self.updater([(self.encoder, self.teacher)], 0.9)
        with torch.no_grad():
            target = self.teacher(rows)
        return (self.encoder(rows) - target - 1.0).square().mean()


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
FUSED = (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad)
OPTIMISERS = [(kind, {"fused": True}) for kind in FUSED]
OPTIMISERS += [(torch.optim.AdamW, {"foreach": foreach}) for foreach in (True, False)]


@pytest.mark.parametrize("optimiser, options", OPTIMISERS, ids=str)
@pytest.mark.parametrize("learning_rate", [1e-2, 1e-7])
def test_moves_once_a_step(optimiser, options, learning_rate):
    model = Student()
    steps = optimiser(model.encoder.parameters(), lr=learning_rate, **options)
    expected = weights(model.teacher)
    for step in range(4):
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, weights(model.encoder))]
        for _ in range(3):  # gradient accumulation
            (model(ROWS) / 3).backward()
            assert model.moves == step + 1
            torch.testing.assert_close(weights(model.teacher), expected)
        steps.step()
        steps.zero_grad()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_evaluation_moves_nothing_and_buffers_are_the_teachers_own():
    model = Student().eval()
    statistics = model.teacher[1].running_mean
    model(ROWS)
    assert model.moves == 0
    model.train()
    with torch.no_grad():
        model.encoder[1].running_mean.fill_(7.0)
        model.encoder[0].weight.add_(1.0)
    model.updater([(model.encoder, model.teacher)], 0.9)
    assert model.teacher[1].running_mean is statistics
    assert statistics.tolist() == [0.0] * 4


def test_the_copy_is_its_own_and_follows_the_mode():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    teacher = momentum_copy(encoder)
    assert not teacher.training and not teacher[1].training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        encoder[0].weight.zero_()
    assert teacher[0].weight.abs().sum() > 0
    assert nn.ModuleList([encoder, teacher]).train()[1].training


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copied_model_goes_on_by_itself(again):
    model = Student()
    model(ROWS)
    other = again(model)
    other(ROWS)
    assert other.moves == 1  # its weights are what they were
    with torch.no_grad():
        other.encoder[0].weight.add_(1.0)
    other(ROWS)
    assert (other.moves, model.moves) == (2, 1)
    model(ROWS)
    assert model.moves == 1


def test_a_resumed_model_moves_at_its_first_step(tmp_path):
    model = Student()
    model(ROWS)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    resumed = Student()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed(ROWS)
    assert resumed.moves == 1


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_extreme_momentum(momentum):
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    expected = weights(teacher if momentum else student)
    assert MomentumUpdater()([(student, teacher)], momentum)
    torch.testing.assert_close(weights(teacher), expected)


def test_bad_input_is_named():
    student = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="momentum must be between 0 and 1, got 1.5"):
        MomentumUpdater()([(student, momentum_copy(student))], 1.5)
    with pytest.raises(ValueError, match="they differ in bias"):
        MomentumUpdater()([(nn.Linear(2, 2, bias=False), student)], 0.9)
    for teacher in (nn.Linear(2, 3), nn.Linear(3, 2)):
        with pytest.raises(ValueError, match="they differ in "):
            MomentumUpdater()([(student, teacher)], 0.9)


@pytest.mark.parametrize(
    "dtype, slow, fast", [(torch.bfloat16, 0.99, 0.9), (torch.float16, 0.999, 0.99)], ids=["bfloat16", "float16"]
)
def test_a_teacher_that_rounding_would_hold_still_is_refused(dtype, slow, fast):
    student = nn.Linear(2, 2).to(dtype)
    teacher, update = momentum_copy(student), MomentumUpdater()
    with torch.no_grad():
        student.weight.mul_(1.2)
    before = weights(teacher)[0]
    with pytest.raises(ValueError, match=f"teachers are in {dtype}.*momentum of {slow}.*torch.float32.*bf16=True"):
        update([(student, teacher)], slow)
    assert torch.equal(teacher.weight, before)
    assert update([(student, teacher)], 1.0) and torch.equal(teacher.weight, before)
    with torch.no_grad():
        student.weight.mul_(1.2)
    assert update([(student, teacher)], fast) and not torch.equal(teacher.weight, before)
    single = nn.Linear(2, 2)
    assert MomentumUpdater()([(single, momentum_copy(single))], 1.0 - 1e-9)  # the end of a rising momentum
