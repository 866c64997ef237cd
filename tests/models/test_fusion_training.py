"""What fusion models learn from pairs: several texts an image, batches without negatives, the teacher, processes."""

import itertools

import pytest
import torch
from contract.heads import Head, heads, state_of, tiny_batch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from hfvlm import fusion_training
from hfvlm.fusion_training import FusionForImageTextRetrieval
from hfvlm.losses import matching
from hfvlm.losses.matches import UNKNOWN
from hfvlm.models.albef import pretraining_albef
from hfvlm.momentum_teacher import MomentumTeacherMixin
from hfvlm.registry import find, load


LEARNERS = heads(lambda head: issubclass(head.cls, FusionForImageTextRetrieval))
#: other heads with a momentum teacher whose say grows
TAUGHT = heads(
    lambda head: (
        issubclass(head.cls, MomentumTeacherMixin)
        and "AutoModelForPreTraining" in find(head.model_type).heads
        and hasattr(head.model(alpha_steps=1), "teacher_step")
        and head.auto_class != "AutoModelForPreTraining"
    )
)
every_learner = pytest.mark.parametrize("head", LEARNERS, ids=str)
WORLD = 2


def likeliest(monkeypatch) -> None:
    """Negatives are not drawn, so that two runs are alike."""
    monkeypatch.setattr(matching, "draw", lambda weights: weights.argmax(dim=-1))


def parts(outputs) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in outputs.items() if name.startswith("loss_")}


@every_learner
def test_several_texts_an_image_learn_as_the_image_repeated_and_named(head, monkeypatch):
    likeliest(monkeypatch)
    grouped, repeated = head.model().train(), head.model().train()
    batch = tiny_batch(grouped, images=3, texts=2)
    torch.manual_seed(0)
    one = grouped(**batch, image_ids=torch.arange(3))
    torch.manual_seed(0)
    batch["pixel_values"] = batch["pixel_values"].repeat_interleave(2, 0)
    other = repeated(**batch, image_ids=torch.arange(3).repeat_interleave(2))
    torch.testing.assert_close(parts(one), parts(other), rtol=1e-4, atol=1e-5)
    one.loss.backward()
    other.loss.backward()
    for (name, ours), theirs in zip(grouped.named_parameters(), repeated.parameters()):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


@every_learner
def test_a_batch_of_one_image_has_no_negatives_and_skips_the_term(head, monkeypatch):
    warned = []
    monkeypatch.setattr(fusion_training.logger, "warning_once", warned.append)
    model = head.model().train()
    batch = tiny_batch(model, images=3)
    outputs = model(**batch, image_ids=torch.tensor([4, 4, 4]))
    assert outputs.loss_itm.item() == 0.0 and "all images of a batch are the same" in warned[0]
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@every_learner
def test_bad_input_is_named(head):
    model = head.model(queue_size=2).train()
    with pytest.raises(ValueError, match=r"queue_size \(2\) must be at least the 3 pairs of a batch"):
        model(**tiny_batch(model, images=3))
    with pytest.raises(ValueError, match="alpha must be between 0"):
        model(**tiny_batch(model, images=2), alpha=1.5)
    with pytest.raises(ValueError, match=r"image_ids must be \[2\], one an image, got \[3\]"):
        model(**tiny_batch(model, images=2), image_ids=torch.arange(3))
    plain = head.model(momentum=None).train()
    with pytest.raises(ValueError, match="config.momentum is None: there is no teacher"):
        plain(**tiny_batch(plain), alpha=0.4)


@every_learner
def test_without_momentum_there_is_no_teacher_and_the_batch_is_contrasted_alone(head):
    model = head.model(momentum=None).train()
    assert not [name for name in model.state_dict() if name.startswith(("teacher_", "image_queue", "text_queue"))]
    outputs = model(**tiny_batch(model, images=4))
    outputs.loss.backward()
    assert outputs.loss_itc.item() > 0 and outputs.loss_itm.item() > 0


@every_learner
def test_the_teachers_say_grows_over_its_steps(head):
    model = head.model(alpha=0.4, alpha_steps=4).train()
    said = []
    for _ in range(3):
        said.append(model._choose_alpha(None))
        model(**tiny_batch(model)).loss.backward()
        with torch.no_grad():
            model.itm_head.weight.add_(0.1)
            model.text_proj.weight.add_(0.1)
    assert said == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("head", TAUGHT, ids=str)
def test_a_ramp_starts_at_its_beginning_in_another_head(head, tmp_path):
    """Also where the folder has no step: memory that nothing has written holds any number."""
    pretraining = find(head.model_type).heads["AutoModelForPreTraining"]
    Head(head.model_type, "AutoModelForPreTraining").model().save_pretrained(tmp_path)
    assert load(pretraining) is not head.cls
    for _ in range(3):
        torch.full((64,), 7)  # what is freed is what is given next
        model = head.cls.from_pretrained(tmp_path, alpha_steps=100)
        assert model.teacher_step.item() == 0
        assert model.train()._choose_alpha(None) == 0.0


@every_learner
def test_the_teacher_has_no_say_in_evaluation_but_where_it_is_asked(head):
    model = head.model(alpha=0.4)
    batch = tiny_batch(model, images=3)
    with torch.no_grad():
        default, none, some = (
            model(**batch, return_loss=True, **more).loss_itc for more in ({}, {"alpha": 0.0}, {"alpha": 0.4})
        )
    assert default == none != some


@every_learner
def test_numbers_that_a_batch_gives_its_images_do_not_stay_in_the_queue(head):
    model = head.model().train()
    batch = tiny_batch(model, images=3, texts=2)
    model(**batch)
    assert (model.image_queue.ids == UNKNOWN).all()
    model(**batch, image_ids=torch.tensor([7, 8, 9]))
    assert sorted(set(model.image_queue.ids.tolist())) == [UNKNOWN, 7, 8, 9]


@every_learner
def test_evaluation_does_not_take_the_queues_images_for_its_own(head):
    """Their numbers are those of the training's rows."""
    model = head.model()
    batch = tiny_batch(model, images=3)
    losses = []
    for ids in (UNKNOWN, 1):
        model.image_queue.ids.fill_(ids)
        with torch.no_grad():
            losses.append(model(**batch, image_ids=torch.arange(3), return_loss=True).loss_itc)
    assert losses[0] == losses[1]


def mask_by_number(ids: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Hides the same words wherever they are, so that processes together hide what one does."""
    hidden = ids % 3 == 0
    return ids.masked_fill(hidden, options["mask_token_id"]), ids.masked_fill(~hidden, -100)


def two_batches(head: Head) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model = head.model()
    return tiny_batch(model, images=6, seed=3), torch.tensor([0, 1, 2, 1, 4, 5])


def check_processes(rank: int, rendezvous: str, names: list[tuple[str, str]]) -> None:
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    matching.draw = lambda weights: weights.argmax(dim=-1)
    pretraining_albef.mask_tokens = mask_by_number
    for (model_type, auto), split in itertools.product(names, ([3, 3], [2, 4])):
        head = Head(model_type, auto)
        batch, ids = two_batches(head)
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        mine = {name: value[own] for name, value in batch.items()}
        model, alone = head.model().train(), head.model().train()
        wrapped = DistributedDataParallel(model)  # kept: gradients are averaged while it lives
        outputs = wrapped(**mine, image_ids=ids[own])
        outputs.loss.backward()
        fusion_training.several_processes, kept = (lambda: False), fusion_training.several_processes
        whole = alone(**batch, image_ids=ids)
        # the queue is pushed by all processes; alone it would be pushed twice
        whole.loss.backward()
        fusion_training.several_processes = kept
        for name, ours in parts(outputs).items():
            distributed.all_reduce(ours)
            torch.testing.assert_close(ours / WORLD, parts(whole)[name], rtol=1e-4, atol=1e-5, msg=name)
        for (name, ours), theirs in zip(model.named_parameters(), alone.parameters()):
            if ours.requires_grad:
                torch.testing.assert_close(
                    ours.grad,
                    theirs.grad,
                    rtol=1e-3,
                    atol=1e-5,
                    msg=name,
                )
        teacher = {name: value for name, value in state_of(model).items() if name.startswith("teacher_")}
        for name, value in teacher.items():
            torch.testing.assert_close(value, state_of(alone)[name], msg=name)
        torch.testing.assert_close(model.text_queue.features[:6], alone.text_queue.features[:6], rtol=1e-4, atol=1e-5)
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    names = [(head.model_type, head.auto_class) for head in LEARNERS]
    multiprocessing.spawn(check_processes, (f"file://{tmp_path}/meet", names), nprocs=WORLD)
