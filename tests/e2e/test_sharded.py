"""Parameters split among processes (FSDP 2) train as whole ones: losses, weights, momentum teachers and queues."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract.heads import assert_close
from e2e.sharded_run import run


HEADS = [
    "AlbefForImageClassification",
    "AlbefForImageTextRetrieval",
    "AlbefForVisualQuestionAnswering",
    "BlipForPreTraining",
    "BlipForVisualReasoning",
]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp("sharded") / "results.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*command, str(Path(__file__).with_name("sharded_run.py")), str(path), *HEADS],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", HEADS)
def test_sharded_parameters_train_as_whole_ones(name, sharded, monkeypatch):
    from hfvlm.losses import matching

    monkeypatch.setattr(matching, "draw", matching.draw)  # which the run replaces
    whole = run(name)
    assert sharded[name]["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert whole["losses"][0] != pytest.approx(whole["losses"][-1], rel=1e-3)
    assert_close(sharded[name]["state"], whole["state"])
