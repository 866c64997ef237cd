"""What the original code computed in one case, and the account of what was compared with it."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file


class Golden:
    """A case folder: `config.json`, `inputs.safetensors`, `outputs.safetensors`, `README.md` and, unless it is of
    losses alone, `checkpoint*`.

    Each tensor of the outputs must be given to `check`, or to `leave_out` with the reason.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.checkpoint = next(folder.glob("checkpoint*"), None)
        found = re.search(r"atol[ =]([\d.e-]+), rtol[ =]([\d.e-]+)", (folder / "README.md").read_text())
        self.atol, self.rtol = (float(found[1]), float(found[2].rstrip("."))) if found else (1e-4, 1e-4)
        self.compared: set[str] = set()
        self.left_out: dict[str, str] = {}

    def check(self, name: str, ours: torch.Tensor) -> None:
        """Compares one output: floats at the case's tolerance, integers exactly."""
        theirs = self.outputs[name]
        exact = not theirs.is_floating_point()
        tolerance = {"atol": 0, "rtol": 0} if exact else {"atol": self.atol, "rtol": self.rtol}
        torch.testing.assert_close(
            ours.detach().to(theirs.dtype), theirs, **tolerance, msg=lambda message: f"{name}: {message}"
        )
        self.compared.add(name)

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason

    def finish(self) -> None:
        """Every output is accounted for, and prints those that were not compared."""
        forgotten = self.outputs.keys() - self.compared - self.left_out.keys()
        assert not forgotten, f"neither compared nor left out with a reason: {sorted(forgotten)}"
        for name, reason in self.left_out.items():
            print(f"{self.folder.name}: {name} not compared: {reason}")
