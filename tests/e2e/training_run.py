"""A short training of a tiny captioner with the stock `Trainer`; run by a launcher, one process of several.

torchrun --nproc-per-node 2 training_run.py captions.jsonl output '{"max_steps": 2}'
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))  # launched as a script, no conftest has done it

from tiny import tiny_config, tiny_processor

from hfvlm import BlipForConditionalGeneration
from hfvlm.data.captions import CaptionCollator, CaptionedImages, read_captions


def build_trainer(captions: str | Path, output: str | Path, dropout: float = 0.0, **arguments: Any) -> Trainer:
    """The model is the same each time; `arguments` are of `TrainingArguments`."""
    set_seed(0)
    config = tiny_config("blip")
    config.text_config.hidden_dropout_prob = dropout
    model = BlipForConditionalGeneration(config)
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(str(output), **{**defaults, **arguments}),
        train_dataset=CaptionedImages(read_captions(captions)),
        eval_dataset=CaptionedImages(read_captions(captions)[:3]),
        data_collator=CaptionCollator(tiny_processor("blip")),
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The model's parameters, detached."""
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


if __name__ == "__main__":
    trainer = build_trainer(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
    trainer.train()
    trainer.save_model()
    if torch.distributed.is_initialized():  # one that leaves while the other still listens makes gloo abort
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
