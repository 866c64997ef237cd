"""A recipe, trained by one process of several, which says what it saw; run by a launcher.

torchrun --nproc-per-node 2 recipe_run.py recipe.yaml folder
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from hfvlm.training import plan, trainer
from hfvlm.training.recipe import read_recipe


if __name__ == "__main__":
    prepared = plan.prepare(read_recipe(Path(sys.argv[1])))
    predicted, shown = [], []
    predict, move = trainer.predictions, os.replace

    def predictions(*args):
        made = predict(*args)
        predicted.append(made)
        return made

    def replace(source, target):
        time.sleep(2 if Path(target).name == "model" else 0)  # a slow disk: who does not wait finds nothing
        move(source, target)

    trainer.predictions, os.replace = predictions, replace
    folder = prepared.train(shown.append)
    seen = {"there": (folder / "config.json").is_file(), "shown": shown, "predicted": predicted}
    rank = torch.distributed.get_rank()
    Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
