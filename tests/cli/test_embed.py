"""`hfvlm embed`: one file with ids and vectors, all of it or nothing."""

import json

import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open
from two_towers import save_stock_clip, stock_clip, stock_processor

from hfvlm.data import embed as files
from hfvlm.embedder import Embedder


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    """Folder of a tiny two-tower model."""
    return save_stock_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def paths(photos) -> list[str]:
    return [str(photos / name) for name in ("a.png", "b.JPG", "more/c.webp")]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a dog\n\n  two cats \n")
    return path


def read(path) -> dict[str, tuple[list[str], torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
        return {
            kind: (json.loads(said[f"{kind}_ids"]), file.get_tensor(f"{kind}_embeds"))
            for kind in ("image", "text")
            if f"{kind}_ids" in said
        }


def test_images_and_texts(run, clip, photos, paths, texts, tmp_path):
    output = tmp_path / "out.safetensors"
    options = ("--model", clip, "--dtype", "fp32", "--batch-size", 2, "--output", output)
    result = run("embed", photos, "--texts", texts, *options)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{output}: 3 images, 2 texts, 20 numbers each\n"
    found, embed = read(output), Embedder(stock_clip(), stock_processor())
    assert found["image"][0] == paths
    assert found["text"][0] == ["a dog", "two cats"]
    torch.testing.assert_close(found["image"][1], embed.images(paths), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["text"][1], embed.texts(["a dog", "two cats"]), atol=1e-5, rtol=1e-5)


def test_parquet(run, clip, photos, paths, texts, tmp_path):
    output = tmp_path / "out.parquet"
    run("embed", photos, "--texts", texts, "--model", clip, "--dtype", "fp32", "--output", output)
    table = parquet.read_table(output)
    assert table["id"].to_pylist() == [*paths, "a dog", "two cats"]
    assert table["kind"].to_pylist() == ["image"] * 3 + ["text"] * 2
    vectors = torch.tensor(table["embedding"].to_pylist())
    torch.testing.assert_close(vectors[:3], Embedder(stock_clip(), stock_processor()).images(paths))
    assert table.schema.metadata[b"model"] == clip.encode()


def test_only_texts_with_ids(run, clip, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"id": 7, "text": "a dog"}\n"a cat"\n{"text": "snow"}\n')
    output = tmp_path / "out.safetensors"
    result = run("embed", "--texts", tmp_path / "texts.jsonl", "--model", clip, "--output", output, "--json")
    assert json.loads(result.out) == {"output": str(output), "images": 0, "texts": 3, "dim": 20}
    assert read(output)["text"][0] == ["7", "a cat", "snow"]
    assert list(read(output)) == ["text"]


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_file_name_that_is_not_utf8(tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # as os.listdir gives it
    files.write_embeddings(output, files.Embeddings([name], [torch.eye(1, 4)]), files.Embeddings(), {"model": name})
    if suffix == "parquet":
        table = parquet.read_table(output)
        ids, model = table["id"].to_pylist(), table.schema.metadata[b"model"].decode()
    else:
        ids = read(output)["image"][0]
        with safe_open(output, framework="pt") as file:
            model = file.metadata()["model"]
    assert (ids, model) == ([r"caf\udce9.png"], r"caf\udce9.png")


def test_lines_end_at_line_feeds_alone(tmp_path):
    texts = ["a\u2028dog", "a\x85cat", "a\x0cball"]
    (tmp_path / "texts.txt").write_bytes("\r\n".join(texts).encode("utf-8-sig"))
    assert files.read_texts(tmp_path / "texts.txt") == (texts, texts)
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[:2]]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8-sig")
    assert files.read_texts(tmp_path / "texts.jsonl") == (texts[:2], texts[:2])


def test_broken_images_are_named_and_left_out(run, clip, photos, paths, tmp_path):
    (photos / "aa.png").write_text("no image")
    output = tmp_path / "out.safetensors"
    result = run("embed", photos, "--model", clip, "--output", output)
    assert result.code == 1
    assert result.err == f"error: {photos / 'aa.png'}: is not an image that can be read\n"
    assert read(output)["image"][0] == paths
    output.unlink()
    result = run("embed", photos / "aa.png", "--model", clip, "--output", output)
    assert (result.code, result.out) == (1, "")
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "{tmp}/out.safetensors"], 2, "nothing to embed"),
        (["{tmp}/gone.png", "--output", "{tmp}/out.safetensors"], 2, "no such file"),
        (["{photos}", "--output", "{tmp}/out.npy"], 2, "must end in .safetensors or .parquet"),
        (["{photos}", "--output", "{tmp}/gone/out.parquet"], 2, "no such folder"),
        (["{photos}"], 2, "--output"),
        (["--texts", "{tmp}/gone.txt", "--output", "{tmp}/out.safetensors"], 1, "no such file"),
        (["--texts", "{tmp}/empty.txt", "--output", "{tmp}/out.safetensors"], 1, "has no text"),
        (["--texts", "{tmp}/texts.csv", "--output", "{tmp}/out.safetensors"], 1, "must end in .txt or .jsonl"),
        (["--texts", "{tmp}/bytes.txt", "--output", "{tmp}/out.safetensors"], 1, "is not UTF-8 text"),
        (["--texts", "{tmp}/bad.jsonl", "--output", "{tmp}/out.safetensors"], 1, "bad.jsonl:2: is not JSON"),
        (["--texts", "{tmp}/none.jsonl", "--output", "{tmp}/out.safetensors"], 1, "none.jsonl:1: must be a string"),
    ],
)
def test_bad_input(run, clip, photos, tmp_path, arguments, code, message):
    contents = {"empty.txt": b"\n \n", "bytes.txt": b"\xff\xfe\xfa", "bad.jsonl": b'"a"\n{', "none.jsonl": b'{"a": 1}'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    result = run("embed", *(part.format(tmp=tmp_path, photos=photos) for part in arguments), "--model", clip)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))


def test_parquet_without_pyarrow(run, clip, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    result = run("embed", photos, "--model", clip, "--output", tmp_path / "out.parquet")
    assert result.code == 2
    assert "pip install pyarrow" in result.err


def test_ids_that_outgrow_the_header(run, clip, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HEADER_BYTES", 10)
    result = run("embed", photos, "--model", clip, "--output", tmp_path / "out.safetensors")
    assert result.code == 1
    assert "write .parquet" in result.err
    assert not list(tmp_path.glob("*out*"))
