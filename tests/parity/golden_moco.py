"""What MoCo's pretraining must reproduce of the original code: two training steps, in one process or several.

As a script it is one of the processes: `golden_moco.py FOLDER RANK WORLD RENDEZVOUS OUTPUT`.
"""

import subprocess
import sys
from pathlib import Path

import torch
from golden import Golden
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hfvlm.conversion.convert_moco import convert, to_release_keys
from hfvlm.models.moco import pretraining_moco


#: absolute and relative, the case's own. After a step of SGD a ReLU can fall on the other side of zero by rounding
#: (the original's operations, repeated on another processor, differ as much), so the former is of the largest number.
FIRST, LATER = (2e-5, 1e-4), (1e-3, 1e-3)


def replay(golden: Golden, rank: int) -> dict[str, torch.Tensor]:
    """The case's outputs, as one process sees them."""
    case, settings = golden.config["constructor"], golden.config["optimizer"]
    told = {"temperature": case["T"], "momentum": case["m"], "vision_config": {"image_size": case["px"]}}
    model = convert(golden.checkpoint, config=told).train()
    assert (model.config.queue_size, model.config.projection_dim) == (case["K"], case["dim"])
    assert model.config.projection_layers == (2 if case["mlp"] else 1)
    step = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(
        model.parameters(), settings["lr"], settings["momentum"], weight_decay=settings["weight_decay"]
    )
    made, rows = {}, slice(rank * case["b"], (rank + 1) * case["b"])
    for s in range(golden.config["steps"]):
        order = golden.inputs[f"step{s}.idx_shuffle"]
        pretraining_moco.shuffle_order = lambda rows, device, order=order: order
        views = [golden.inputs[f"step{s}.im_{view}"][rows] for view in "qk"]
        outputs = step(*views)
        outputs.loss.backward()
        own = {
            "logits": outputs.logits,
            "labels": torch.zeros(len(outputs.logits), dtype=torch.long),
            "loss": outputs.loss,
            "k": outputs.key_embeds,
        }
        made.update({f"step{s}.rank{rank}.{name}": value for name, value in own.items()})
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients = to_release_keys(model, gradients)
        gradients["encoder_q.fc.weight"] = model.projection[-1].weight.grad  # the last layer's, whatever its number
        made.update({f"step{s}.grad.{name}": gradient.clone() for name, gradient in gradients.items()})
        state = {name: value.clone() for name, value in to_release_keys(model, model.state_dict()).items()}
        optimizer.step()
        optimizer.zero_grad()
        state.update(
            (k, v) for k, v in to_release_keys(model, model.state_dict()).items() if k.startswith("encoder_q")
        )
        after = f"step{s}." if rank == 0 else f"step{s}.rank{rank}."
        made.update({f"{after}{name}_after": state.pop(name) for name in ("queue", "queue_ptr")})
        made.update({f"{after}{'state_after.' if rank == 0 else ''}{name}": value for name, value in state.items()})
    model.eval()
    images = golden.inputs["step0.im_q"]
    made["eval.encoder_q"] = model.projection(model.get_image_features(images).pooler_output)
    return {name: made[name].detach().clone().contiguous() for name in made.keys() & golden.outputs.keys()}


def pretraining(golden: Golden, monkeypatch, tmp_path) -> None:
    """`MoCo.forward`: logits, keys, queue, gradients, and the states of both encoders after each step."""
    world, meet, made = golden.config["world_size"], tmp_path / "rendezvous", {}
    outputs = [tmp_path / f"rank{rank}.safetensors" for rank in range(world)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(golden.folder), str(rank), str(world), str(meet), str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    for output in reversed(outputs):  # what all processes see is the first one's
        made.update(load_file(output))
    for name, value in made.items():
        golden.atol, golden.rtol = FIRST if name.startswith("step0.") else LATER
        if not name.startswith("step0."):
            golden.atol *= max(1.0, golden.outputs[name].abs().max().item())
        golden.check(name, value)


if __name__ == "__main__":
    folder, rank, world, meet, output = sys.argv[1:]
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=int(rank), world_size=int(world))
    save_file(replay(Golden(Path(folder)), int(rank)), output)
    distributed.barrier()  # one that leaves first makes gloo abort in the other now and then
    distributed.destroy_process_group()
