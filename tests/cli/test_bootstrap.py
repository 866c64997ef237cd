"""`hfvlm bootstrap`: web texts in, shards out; killed and run again, by one process or several."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from pyarrow import parquet
from tiny import tiny_model, tiny_processor

from hfvlm.data import bootstrap_ray


@pytest.fixture(scope="session")
def judge(tmp_path_factory) -> str:
    """Folder of a tiny retrieval model."""
    folder = tmp_path_factory.mktemp("judge")
    tiny_model("blip", "AutoModelForImageTextRetrieval").save_pretrained(folder)
    tiny_processor("blip").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def arguments(photos, model, judge, tmp_path):
    """Six rows of three photos in shards of one."""
    rows = [{"image": name, "text": f"a dog {i}"} for i, name in enumerate(["a.png", "b.JPG", "more/c.webp"] * 2)]
    source = photos / "web.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--threshold", 0, "--shard-size", 1, "--max-length", 6, "--dtype", "fp32"]
    return ["bootstrap", source, "--captioner", model, "--filter", judge, "--output", tmp_path / "out", *options]


def rows_in(folder) -> list[dict]:
    return [row for path in sorted(folder.glob("round-1/*.parquet")) for row in parquet.read_table(path).to_pylist()]


def elsewhere(arguments, folder) -> list:
    return [folder if argument == arguments[arguments.index("--output") + 1] else argument for argument in arguments]


def test_says_what_came_of_it(run, arguments, tmp_path):
    result = run(*arguments)
    folder = tmp_path / "out" / "round-1"
    kept = "kept 6 of 6 web texts and 6 of 6 synthetic texts"
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{folder}: 6 shards, 6 images (0 skipped); {kept}\n"
    again = json.loads(run(*arguments, "--json").out)
    counts = {"images": 6, "skipped": 0, "web": 6, "web_kept": 6, "synthetic": 6, "synthetic_kept": 6}
    assert again == {"output": str(folder), "round": 1, "shards": 6, **counts}


def test_two_processes_make_what_one_makes(run, arguments, tmp_path, monkeypatch):
    run(*arguments)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        result = json.loads(run(*elsewhere(arguments, tmp_path / "two"), "--json").out)
        assert result["shards"] == 3
        made = {path.name for path in (tmp_path / "two" / "round-1").iterdir()}
        assert made >= {f"shard-{shard:05d}.parquet" for shard in range(rank, 6, 2)}
        assert len(made) == 6 - 3 * rank
    assert rows_in(tmp_path / "two") == rows_in(tmp_path / "out")


def test_killed_and_run_again_it_makes_the_same_rows(run, arguments, tmp_path):
    killed = [str(argument) for argument in elsewhere(arguments, tmp_path / "killed")]
    code = (
        "import time; from hfvlm.cli import main; from hfvlm.data.shards import ShardFolder\n"
        "write = ShardFolder.write\n"
        "ShardFolder.write = lambda *args: (write(*args), time.sleep(1))\n"  # there is time for the kill
        f"main({killed!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (made := list((tmp_path / "killed").glob("round-1/[!.]*.parquet"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(made) < 6
    run(*arguments)
    assert run(*elsewhere(arguments, tmp_path / "killed")).code == 0
    assert rows_in(tmp_path / "killed") == rows_in(tmp_path / "out")


def test_a_broken_image_is_named_and_skipped(run, arguments, photos):
    (photos / "b.JPG").write_bytes(b"")
    result = run(*arguments)
    assert result.code == 0
    assert result.err.splitlines() == [f"error: row {row}: {photos / 'b.JPG'}: is empty (0 bytes)" for row in (1, 4)]
    assert "4 images (2 skipped); kept 4 of 4 web texts" in result.out


def test_an_output_made_otherwise_is_refused(run, arguments):
    run(*arguments)
    result = run(*arguments, "--top-p", 0.5)
    assert (result.code, result.out) == (1, "")
    assert "shard-00000.parquet: was made with another top_p: choose another --output, or delete it" in result.err
    assert run(*arguments, "--top-p", 0.5, "--round", 2).code == 0, "another round has a folder of its own"


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--threshold", 1.5], 2, "threshold must be a probability, 0 to 1, got 1.5"),
        (["--top-p", 0], 2, "top_p must be above 0 and at most 1, got 0"),
        (["--round", 0], 2, "--round"),
        (["--captioner", "/no/such/folder"], 1, "no such folder: /no/such/folder"),
    ],
)
def test_bad_options(run, arguments, more, code, message):
    result = run(*arguments, *more)
    assert (result.code, result.out) == (code, "")
    assert message in result.err and result.err.count("\n") == 1


def test_bad_input_and_models(run, arguments, model, photos, tmp_path):
    result = run(*arguments, "--filter", model)
    assert result.code == 1
    assert "it holds the weights of BlipForConditionalGeneration" in result.err
    result = run(*arguments, "--captioner", arguments[arguments.index("--filter") + 1])
    assert result.code == 1 and result.err.count("\n") == 1
    for content, message in (("", "has no row"), ('{"image": "a.png"}', "has no 'text' or 'captions', only image")):
        (photos / "web.jsonl").write_text(content)
        result = run(*arguments)
        assert (result.code, result.out) == (1, "")
        assert message in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ray_where_it_is_not_installed(run, arguments, monkeypatch):
    monkeypatch.setattr(bootstrap_ray.importlib.util, "find_spec", lambda name: None)
    result = run(*arguments, "--engine", "ray")
    assert (result.code, result.out) == (2, "")
    assert "needs Ray Data: `pip install 'ray[data]'`, or use --engine local" in result.err
