"""Short contrastive trainings of a tiny CLIP with the stock `Trainer`; run by a launcher, one process of several.

torchrun --nproc-per-node 2 contrast_run.py output '{"name": {"config": {...}, "arguments": {...}, "resume": null}}'
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))  # launched as a script, no conftest has done it

from tiny import randomise, tiny_config

from hfvlm import ClipModel


PAIRS, BATCH = 16, 8
#: which photo a row shows; photos with several texts are no negatives of themselves
PHOTOS = [0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 0]


def rows(named: bool = False) -> list[dict[str, torch.Tensor]]:
    """Photos with their texts, `named` by `image_ids` or not."""
    generator = torch.Generator().manual_seed(0)
    photos = torch.randn(10, 3, 32, 32, generator=generator)
    ids = torch.randint(1, 60, (PAIRS, 9), generator=generator)
    found = []
    for photo, text in zip(PHOTOS, ids):
        length = int(torch.randint(3, 10, (), generator=generator))
        text[0], text[length - 1 :] = 62, 0
        text[length - 1] = 63
        row = {"pixel_values": photos[photo], "input_ids": text, "attention_mask": (torch.arange(9) < length).long()}
        found.append({**row, "image_ids": torch.tensor(photo)} if named else row)
    return found


def build_trainer(output: str | Path, config: dict[str, Any], arguments: dict[str, Any]) -> Trainer:
    """The model and the order of the rows are the same each time.

    Args:
        config: fields of `ClipConfig`; `image_ids` among them names the photos.
        arguments: of `TrainingArguments`.
    """
    set_seed(0)
    config = dict(config)
    named = config.pop("image_ids", False)
    model = ClipModel(tiny_config("clip", **config))
    randomise(model)
    defaults = {
        "max_steps": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1.0,  # of plain SGD: the weights move by the gradient
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    training = TrainingArguments(str(output), **{**defaults, **arguments})
    return Trainer(model, training, train_dataset=rows(named), eval_dataset=rows(named)[:6])


def run(output: str | Path, case: dict[str, Any]) -> dict[str, Any]:
    """The losses of a training, and what each parameter has moved by."""
    trainer = build_trainer(output, case["config"], case.get("arguments", {}))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train(resume_from_checkpoint=case.get("resume"))
    after = dict(trainer.model.named_parameters())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "moved": {name: after[name].detach() - value for name, value in before.items()}}


if __name__ == "__main__":
    output, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    results = {name: run(output / "work", case) for name, case in cases.items()}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(results, output / "results.pt")
    if torch.distributed.is_initialized():  # one that leaves while the other still listens makes gloo abort
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
