"""On a GPU every head gives what it gives on the CPU, and the stock `Trainer` trains it in half precision."""

import pytest
import torch
from contract.heads import ENCODER_DECODERS, LEARNERS, assert_close, every, tensors, tiny_batch, to_learn
from e2e.test_every_learner import build_trainer


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def to_cuda(batch: dict) -> dict:
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@every(LEARNERS)
def test_outputs_losses_and_gradients_are_those_of_the_cpu(head):
    """In evaluation, where nothing is drawn."""
    found = []
    for to in (dict, to_cuda):
        model = head.model()
        batch = to(to_learn(model, tiny_batch(model, images=4)))
        model.to(batch["pixel_values"].device)
        outputs = model(**batch)
        outputs.loss.backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append(
            ({"loss": outputs.loss.detach().cpu()}, {n: v.cpu() for n, v in tensors(outputs).items()}, gradients)
        )
    for cpu, cuda, tolerance in zip(*found, (1e-4, 1e-3, 2e-3)):
        scale = max(float(value.detach().float().abs().max()) for value in cpu.values())
        assert_close(cuda, cpu, rtol=tolerance, atol=tolerance * max(scale, 1e-2))


@every(LEARNERS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_trainer_trains_in_half_precision(head, precision, tmp_path):
    options = {precision: True, "use_cpu": False, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    options["gradient_checkpointing"] = head.cls.supports_gradient_checkpointing
    trainer = build_trainer(head, tmp_path, **options)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    result = trainer.train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    after = dict(trainer.model.named_parameters())
    moved = [name for name, value in before.items() if not torch.equal(value.cpu(), after[name].detach().cpu())]
    assert moved
    assert all(parameter.isfinite().all() for parameter in after.values())


@every(ENCODER_DECODERS)
def test_texts_are_those_of_the_cpu(head):
    model = head.model()
    batch = {name: value for name, value in tiny_batch(model).items() if name == "pixel_values"}
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    cpu = model.generate(**batch, **options)
    assert torch.equal(model.cuda().generate(**to_cuda(batch), **options).cpu(), cpu)
