"""The parts of a loss in the logs: means by name, of training since the last log, of evaluation over all rows."""

import pytest
from transformers import Trainer, TrainerState

from hfvlm.training.plan import prepare
from hfvlm.training.trainer import EpochOf, PartsTrainer


@pytest.fixture
def trainer(recipe, read, monkeypatch):
    """The trainer of the recipe after its run."""
    made = []
    start = PartsTrainer.__init__
    monkeypatch.setattr(PartsTrainer, "__init__", lambda self, **kwargs: made.append(self) or start(self, **kwargs))
    recipe["training"] |= {
        "save_strategy": "no",
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    recipe["training"] |= {"per_device_eval_batch_size": 3, "per_device_train_batch_size": 2}
    prepare(read(recipe)).train()
    return made[0]


def test_the_parts_add_up_to_the_loss(trainer):
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4]
    for log in logs:
        assert log["loss"] == pytest.approx(log["loss_itc"] + log["loss_itm"], rel=1e-5)
    evaluated = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log["step"] for log in evaluated] == [2, 4]
    for log in evaluated:  # of 4 rows, in batches of 3 and 1
        assert log["eval_loss"] == pytest.approx(log["eval_loss_itc"] + log["eval_loss_itm"], rel=1e-4)


def test_all_else_is_the_stock_trainers(trainer):
    changed = {name for name in vars(PartsTrainer) if not name.startswith("__") and hasattr(Trainer, name)}
    assert changed == {"compute_loss", "evaluate", "log"}


def test_rows_are_told_the_epoch(trainer):
    rows = trainer.train_dataset
    assert rows.epoch == 1  # two steps an epoch, four steps
    for said, epoch in ((2.9999999, 3), (2.5, 2), (0, 0)):
        EpochOf(rows).on_epoch_begin(None, TrainerState(epoch=said), None)
        assert rows.epoch == epoch


def test_parts_of_accumulated_batches_are_those_of_the_whole(recipe, read):
    """Where a model divides by the tokens of all that is accumulated."""
    recipe |= {"task": "captioning", "augment": False}
    logged = []
    for size, steps in ((4, 1), (2, 2)):
        recipe["training"] |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        recipe["training"] |= {"save_strategy": "no", "logging_steps": 1, "max_steps": 2}
        recipe |= {"output": f"{recipe['output']}-{steps}"}
        plan = prepare(read(recipe))
        collator, rows = plan.task.collator(plan.processor, None), (plan.train_rows, plan.evaluation_rows)
        trainer = PartsTrainer(plan.model, plan.arguments, collator, *rows)
        trainer.train()
        logged.append([log for log in trainer.state.log_history if "loss" in log])
    for log in [*logged[0], *logged[1]]:
        assert log["loss_lm"] == pytest.approx(log["loss"], rel=1e-4)
