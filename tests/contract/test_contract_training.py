"""What every head with a loss promises: it learns, it counts labels as `Trainer` does, and every stage is honest."""

import pytest
import torch
from contract.heads import WITH_LOSS, head_class, pad, tiny_batch, with_labels
from tiny import HEADS, tiny_model
from transformers.modeling_layers import GradientCheckpointingLayer


pytestmark = pytest.mark.contract
every_head = pytest.mark.parametrize(("model_type", "auto_class"), HEADS)
every_learner = pytest.mark.parametrize(("model_type", "auto_class"), WITH_LOSS)
every_learner_and_stage = pytest.mark.parametrize(
    ("model_type", "auto_class", "stage"),
    [(*head, stage) for head in WITH_LOSS for stage in head_class(*head).trainable_stages],
)


def gradients(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The loss of a batch, and the gradient of every trainable parameter."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@every_learner
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_equals_plain(model_type, auto_class, reentrant):
    model = tiny_model(model_type, auto_class).train()
    batch = with_labels(pad(tiny_batch(model, texts=2), 3, "right"))
    calls = []
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    loss, plain = gradients(model, batch)
    plain_calls = len(calls)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed_loss, checkpointed = gradients(model, batch)
    assert len(calls) - plain_calls == 2 * plain_calls, "every layer must run once more in the backward pass"
    torch.testing.assert_close(checkpointed_loss, loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@every_learner
def test_one_batch_is_learned_by_heart(model_type, auto_class):
    model = tiny_model(model_type, auto_class).train()
    model.config.label_smoothing = 0.0  # with it, no loss comes near 0
    batch = with_labels(tiny_batch(model, images=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert losses[-1] < 0.05


@every_learner
def test_the_loss_is_the_sum_of_its_named_parts(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    outputs = model(**with_labels(tiny_batch(model)))
    parts = [value for name, value in outputs.items() if name.startswith("loss_")]
    assert parts
    torch.testing.assert_close(sum(parts), outputs.loss)
    assert model(**tiny_batch(model)).loss is None


@every_learner
def test_without_a_label_the_loss_is_zero_and_so_are_its_gradients(model_type, auto_class):
    model = tiny_model(model_type, auto_class).train()
    batch = tiny_batch(model)
    loss, grads = gradients(model, {**batch, "labels": torch.full_like(batch["input_ids"], -100)})
    assert loss.item() == 0.0
    assert all(gradient is not None and not gradient.any() for gradient in grads.values())


@every_learner
def test_accumulated_batches_sum_to_the_whole_batch(model_type, auto_class):
    """`num_items_in_batch`: parts of a batch, each divided by the labels of all, add up to the batch's own mean."""
    model = tiny_model(model_type, auto_class).train()
    batch = with_labels(tiny_batch(model, images=4))
    batch["labels"][0, 3:] = -100  # parts of unlike size: means of means would be wrong
    count = (batch["labels"][:, 1:] != -100).sum()
    whole, whole_grads = gradients(model, batch)
    torch.testing.assert_close(model(**batch, num_items_in_batch=count).loss, whole)
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss, whole / 2)
    parts = [model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=count).loss for i in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    model.zero_grad()
    sum(parts).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole_grads[name], rtol=1e-4, atol=1e-6, msg=name)


@every_learner
def test_padding_and_the_prompt_are_not_learned(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    labels = with_labels(batch)["labels"]
    plain = model(**batch, labels=labels).loss
    padded = pad(batch, 4, "right")
    learned = torch.nn.functional.pad(labels, (0, 4), value=-100)
    torch.testing.assert_close(model(**padded, labels=learned).loss, plain)
    assert not torch.allclose(model(**padded, labels=learned.masked_fill(learned == -100, 0)).loss, plain)
    assert not torch.allclose(model(**batch, labels=labels.index_fill(1, torch.tensor([1, 2]), -100)).loss, plain)


@every_learner
def test_labels_alone_make_the_inputs(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = with_labels(tiny_batch(model))
    given = {key: batch[key] for key in ("pixel_values", "labels")}
    torch.testing.assert_close(model(**given).loss, model(**batch).loss)


@every_learner_and_stage
def test_a_stage_trains_exactly_what_it_declares_and_all_of_it(model_type, auto_class, stage):
    """Exactly: nothing else may change. All of it: a parameter without a gradient makes DDP wait for ever."""
    model = tiny_model(model_type, auto_class).train()
    model.freeze(stage)
    prefixes = model.trainable_stages[stage]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if any(name.startswith(p) for p in prefixes)}
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in trainable), f"{prefix!r} matches no parameter"
    _, grads = gradients(model, with_labels(tiny_batch(model)))
    assert grads.keys() == trainable
    assert [name for name, gradient in grads.items() if gradient is None] == []
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable)


@every_head
def test_stages_can_be_changed_and_an_unknown_one_names_the_others(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    for stage in model.trainable_stages:
        model.freeze(stage)
    model.freeze("all")
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="no stage 'bananas'; choose from all"):
        model.freeze("bananas")
