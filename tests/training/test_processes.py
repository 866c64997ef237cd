"""A recipe trained by two processes: both predict the samples, one writes them, and both find the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.conftest import write_recipe


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_both_predict_one_writes_and_both_find_the_model(recipe, tmp_path, task):
    recipe |= {"task": task, "samples": 2}
    recipe["training"] |= {"max_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 1}
    recipe["training"] |= {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script, path = str(Path(__file__).with_name("recipe_run.py")), write_recipe(tmp_path / "recipe.yaml", recipe)
    run = subprocess.run(
        [*command, script, str(path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(first["shown"]) == 2 and second["shown"] == []
    assert first["predicted"] == second["predicted"] and len(first["predicted"]) == 1
    assert first["there"] and second["there"]
