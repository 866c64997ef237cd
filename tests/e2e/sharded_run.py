"""Trains tiny models for a few steps with their parameters split among processes (FSDP 2); run by a launcher.

torchrun --nproc-per-node 2 sharded_run.py results.pt BlipForPreTraining ...
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard


sys.path.insert(0, str(Path(__file__).parents[1]))  # launched as a script, no conftest has done it

from contract.heads import CLASSES, rows, tiny_batch, to_learn

from hfvlm.losses import matching


IMAGES, STEPS = 8, 3


def run(name: str) -> dict[str, Any]:
    """The losses of some steps, over all processes, and the whole state afterwards; nothing is drawn."""
    matching.draw = lambda weights: weights.argmax(dim=-1)
    torch.manual_seed(0)
    [head] = [head for head in CLASSES if head.cls.__name__ == name]
    model = head.model().train()
    batch = to_learn(model, tiny_batch(model, images=IMAGES))
    count = dist.get_world_size() if dist.is_initialized() else 1
    if count > 1:
        for module in list(model.modules()):
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        fully_shard(model)
        share = IMAGES // count
        batch = rows(batch, share * dist.get_rank(), share * (dist.get_rank() + 1))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        loss = loss.detach().clone()
        if count > 1:
            dist.all_reduce(loss)
        losses.append(loss.item() / count)
    state = {
        name: part.full_tensor() if hasattr(part, "full_tensor") else part for name, part in model.state_dict().items()
    }
    return {"losses": losses, "state": {name: part.clone() for name, part in state.items()}}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {name: run(name) for name in sys.argv[2:]}
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[1])
    dist.barrier()  # one that leaves while the other still listens makes gloo abort
    dist.destroy_process_group()
