"""What every head with a loss promises: it learns, it counts labels as `Trainer` does, every stage is honest, and
what moves without an optimizer moves in training only."""

from typing import Any

import pytest
import torch
from contract.heads import (
    CLASSIFIERS,
    LABELLED,
    LEARNERS,
    OTHER_TOWERS,
    SELF_TAUGHT,
    TEXT_LEARNERS,
    TWO_TOWERS,
    Head,
    assert_close,
    every,
    every_build,
    every_head,
    pad,
    rows,
    state_of,
    tiny_batch,
    to_learn,
)
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


pytestmark = pytest.mark.contract
#: also with every tower that they may have
BUILDS = [*LEARNERS, *OTHER_TOWERS]
every_learner_and_stage = pytest.mark.parametrize(
    ("head", "stage"), [(head, stage) for head in BUILDS for stage in head.cls.trainable_stages], ids=str
)


def forward(model: nn.Module, batch: dict[str, Any]) -> Any:
    """A forward pass with the same draws each time."""
    torch.manual_seed(0)
    return model(**batch)


def gradients(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The loss of a batch, and the gradient of every trainable parameter."""
    model.zero_grad()
    loss = forward(model, batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def learners_batch(model: nn.Module, images: int = 4) -> dict[str, Any]:
    return to_learn(model, tiny_batch(model, images=images))


def learns_from_itself(head: Head) -> bool:
    """Whether the head learns from a slower copy of itself, too, whose parameters no optimizer trains."""
    return not all(parameter.requires_grad for parameter in head.model().parameters())


def count_layers(model: nn.Module) -> list[int]:
    """Has an entry for each time that a layer which learns runs from now on (of a momentum copy none does)."""
    calls: list[int] = []
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and any(p.requires_grad for p in layer.parameters()):
            next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@every(BUILDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_equals_plain(head, reentrant):
    plain, checkpointed = head.model().train(), head.model().train()
    batch = to_learn(plain, pad(tiny_batch(plain, images=4), 3, "right"))
    plain_calls, calls = count_layers(plain), count_layers(checkpointed)
    loss, expected = gradients(plain, batch)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed_loss, grads = gradients(checkpointed, batch)
    assert len(plain_calls) >= 2
    assert len(calls) == 2 * len(plain_calls), "every layer must run once more in the backward pass"
    torch.testing.assert_close(checkpointed_loss, loss)
    assert_close(grads, expected)
    assert_close(state_of(checkpointed), state_of(plain))


@every(LEARNERS)
def test_one_batch_is_learned_by_heart(head):
    model = head.model().train()
    model.config.label_smoothing = 0.0  # with it, no loss comes near 0
    batch = learners_batch(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.numel() > 1]},
        {"params": [parameter for parameter in trained if parameter.numel() == 1], "lr": 1.5e-2},  # a temperature
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = forward(model, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if learns_from_itself(head):  # which moves along, and has seen the same images before
        assert losses[-1] < 0.75 * losses[0]
    else:
        assert losses[-1] < min(0.05, losses[0] / 5)


@every(LEARNERS)
def test_the_loss_is_the_sum_of_its_named_parts(head):
    model = head.model()
    outputs = model(**to_learn(model, tiny_batch(model)))
    assert outputs.loss.ndim == 0
    parts = [value for name, value in outputs.items() if name.startswith("loss_")]
    assert parts
    torch.testing.assert_close(sum(parts), outputs.loss)


@every(LEARNERS)
def test_there_is_a_loss_only_when_it_is_asked_for(head):
    model = head.model()
    declined = {"return_loss": False} if head in SELF_TAUGHT else {}
    outputs = model(**tiny_batch(model), **declined)
    assert not [name for name in outputs if name.startswith("loss")]


@every(TWO_TOWERS)
def test_the_loss_asks_for_itself_in_training_and_needs_pairs(head):
    model = head.model()
    batch = tiny_batch(model, images=3)
    assert model(**batch).loss is None
    losses = [forward(head.model().train(), {**batch, **asked}).loss for asked in ({}, {"return_loss": True})]
    torch.testing.assert_close(*losses)
    model.train()
    with pytest.raises(ValueError, match="got 2 images and 3 texts; pass return_loss=False"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:2]})


@every(LABELLED)
def test_without_a_label_the_loss_is_zero_and_so_are_its_gradients(head):
    model = head.model().train()
    batch = learners_batch(model)
    loss, grads = gradients(model, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert loss.item() == 0.0
    assert all(gradient is not None and not gradient.any() for gradient in grads.values())


@every(LABELLED)
def test_accumulated_batches_sum_to_the_whole_batch(head):
    """`num_items_in_batch`: parts of a batch, each divided by the labels of all, add up to the batch's own mean.

    In evaluation mode: batch norm would join the rows of a part.
    """
    assert getattr(head.cls, "accepts_loss_kwargs", True), "`Trainer` would divide by the batches instead"
    model = head.model()
    batch = learners_batch(model)
    labels = batch["labels"].view(4, -1)
    labels[0, labels.shape[1] // 4 :] = -100  # parts of unlike size: means of means would be wrong
    count = (batch["labels"] != -100).sum()
    whole, whole_grads = gradients(model, batch)
    torch.testing.assert_close(model(**batch, num_items_in_batch=count).loss, whole)
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss, whole / 2)
    parts = [model(**rows(batch, i, i + 1), num_items_in_batch=count).loss for i in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    model.zero_grad()
    sum(parts).backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, whole_grads, atol=1e-6)


@every(TEXT_LEARNERS)
def test_padding_and_the_prompt_are_not_learned(head):
    model = head.model()
    batch = tiny_batch(model)
    labels = to_learn(model, batch)["labels"]
    plain = model(**batch, labels=labels).loss
    padded = pad(batch, 4, "right")
    learned = nn.functional.pad(labels, (0, 4), value=-100)
    torch.testing.assert_close(model(**padded, labels=learned).loss, plain)
    assert not torch.allclose(model(**padded, labels=learned.masked_fill(learned == -100, 0)).loss, plain)
    assert not torch.allclose(model(**batch, labels=labels.index_fill(1, torch.tensor([1, 2]), -100)).loss, plain)


@every(TEXT_LEARNERS)
def test_labels_alone_make_the_inputs(head):
    model = head.model()
    batch = to_learn(model, tiny_batch(model))
    given = {key: batch[key] for key in ("pixel_values", "labels")}
    torch.testing.assert_close(model(**given).loss, model(**batch).loss)


@every(CLASSIFIERS)
def test_classes_come_in_every_form_that_labels_have(head):
    """One class an image, several, or a number; what is not labelled is not learned."""
    model = head.model(num_labels=5)
    batch = tiny_batch(model, images=4)
    logits = model(**batch).logits
    assert logits.shape == (4, 5)
    one = torch.tensor([0, 3, 4, -100])
    expected = -logits[:3].log_softmax(-1).gather(1, one[:3, None]).mean()
    torch.testing.assert_close(model(**batch, labels=one).loss, expected)
    several = (torch.arange(20).view(4, 5) % 3 == 0).float()
    expected = nn.functional.binary_cross_entropy_with_logits(logits, several)
    torch.testing.assert_close(model(**batch, labels=several).loss, expected)
    model = head.model(num_labels=1)
    numbers = torch.tensor([0.5, -1.0, 2.0, 0.0])
    expected = (model(**batch).logits[:, 0] - numbers).square().mean()
    torch.testing.assert_close(model(**batch, labels=numbers).loss, expected)


@every_learner_and_stage
def test_a_stage_trains_exactly_what_it_declares_and_all_of_it(head, stage):
    """Exactly: nothing else may change. All of it: a parameter without a gradient makes DDP wait for ever."""
    model = head.model().train()
    ever = trainable(model)  # a momentum copy never does
    model.freeze(stage)
    prefixes = model.trainable_stages[stage]
    assert trainable(model) == {name for name in ever if name.startswith(prefixes)}
    for prefix in prefixes:
        module, _, _ = prefix.partition(".")
        optional = getattr(model, module, None) is None  # a part that this config leaves out
        assert optional or any(name.startswith(prefix) for name in ever), f"{prefix!r} matches no parameter"
    _, grads = gradients(model, learners_batch(model))
    assert [name for name, gradient in grads.items() if gradient is None] == []
    assert all(p.grad is None for name, p in model.named_parameters() if name not in grads)


@every_learner_and_stage
def test_what_a_stage_freezes_does_not_move(head, stage):
    """Not by an optimizer with weight decay either, nor do the statistics of a batch norm."""
    model = head.model().train()
    ever = trainable(model)
    model.freeze(stage)
    before = state_of(model)
    frozen = {
        name
        for part, module in model.named_modules()
        for name, _ in module.named_buffers(prefix=part, recurse=False)
        if not module.training
    }
    frozen |= ever - trainable(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    forward(model, learners_batch(model)).loss.backward()
    optimizer.step()
    after = state_of(model)
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(before[name], after[name]) for name in trainable(model))


@every_head
def test_stages_can_be_changed_and_an_unknown_one_names_the_others(head):
    model = head.model()
    ever = trainable(model)
    for stage in model.trainable_stages:
        model.freeze(stage)
        assert not model.training
    model.freeze("all")
    assert trainable(model) == ever
    with pytest.raises(ValueError, match="no stage 'bananas'; choose from all"):
        model.freeze("bananas")


@every(BUILDS)
def test_the_stage_all_trains_as_a_model_that_was_never_frozen(head):
    fresh, frozen = head.model().train(), head.model().train()
    frozen.freeze("all")
    loss, expected = gradients(fresh, learners_batch(fresh))
    frozen_loss, grads = gradients(frozen, learners_batch(frozen))
    assert torch.equal(frozen_loss, loss)
    assert_close(grads, expected)
    assert_close(state_of(frozen), state_of(fresh))


@every_build
def test_evaluation_leaves_the_state_alone(head):
    model = head.model()
    before = state_of(model)
    batch = learners_batch(model) if head in BUILDS else tiny_batch(model)
    first = model(**batch)
    if head in BUILDS:
        first.loss.backward()
    second = model(**batch)
    assert torch.equal(first[0], second[0])
    after = state_of(model)
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


@every(BUILDS)
def test_a_forward_pass_in_training_moves_no_trained_parameter(head):
    """Queues, momentum copies and statistics may move; what the optimizer trains is the optimizer's."""
    model = head.model().train()
    before = state_of(model)
    forward(model, learners_batch(model)).loss.backward()
    after = state_of(model)
    assert [name for name in trainable(model) if not torch.equal(before[name], after[name])] == []


@every(BUILDS)
def test_a_saved_model_goes_on_training_where_it_stopped(head, tmp_path):
    """Whatever training has moved is in the folder: the next batch gives the same loss and moves the same state."""
    model = head.model().train()
    forward(model, learners_batch(model)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.save_pretrained(tmp_path)
    loaded = head.cls.from_pretrained(tmp_path).train()
    assert trainable(loaded) == trainable(model)
    batch = to_learn(model, tiny_batch(model, images=4, seed=1))
    torch.testing.assert_close(forward(loaded, batch).loss, forward(model, batch).loss)
    assert_close(state_of(loaded), state_of(model))
