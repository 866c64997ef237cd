"""`hfvlm caption`: what it finds, what it prints, what it does with what is broken."""

import io
import json
import struct
import zlib

import pytest
from PIL import Image
from rich.console import Console

import hfvlm
import hfvlm.builtin
from hfvlm.cli import caption


def bomb() -> bytes:
    """A PNG that promises ten thousand by ten thousand pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def expected(model, photos):
    """What the pipeline says of each photo."""
    pipe = hfvlm.pipeline("image-to-text", model, device="cpu", dtype="float32")
    paths = [str(photos / name) for name in ("a.png", "b.JPG", "more/c.webp")]
    return {path: pipe(path)[0]["generated_text"] for path in paths}


def lines(captions: dict[str, str]) -> str:
    return "".join(f"{path}: {text}\n" for path, text in captions.items())


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_folder(run, model, photos, expected, batch_size):
    result = run("caption", photos, "--model", model, "--dtype", "fp32", "--batch-size", batch_size)
    assert (result.code, result.err) == (0, "")
    assert result.out == lines(expected)


def test_files_globs_and_folders_each_once(run, model, photos, expected):
    names = (photos / "b.JPG", f"{photos}/*.png", f"{photos}/**/*.webp", photos)
    result = run("caption", *names, "--model", model, "--dtype", "fp32")
    order = [str(photos / name) for name in ("b.JPG", "a.png", "more/c.webp")]
    assert result.code == 0
    assert result.out == lines({path: expected[path] for path in order})


def test_file_of_any_suffix_that_is_named(run, model, photos, tmp_path, expected):
    plain = tmp_path / "photo [1]"
    plain.write_bytes((photos / "a.png").read_bytes())
    result = run("caption", plain, "--model", model, "--dtype", "fp32")
    assert result.out == f"{plain}: {expected[str(photos / 'a.png')]}\n"


def test_json(run, model, photos, expected):
    result = run("caption", photos, "--model", model, "--dtype", "fp32", "--json")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert rows == [{"image": path, "caption": text} for path, text in expected.items()]


def test_options(run, model, photos):
    photo = photos / "a.png"
    pipe = hfvlm.pipeline("image-to-text", model, device="cpu", dtype="bfloat16")
    [row] = pipe(photo, prompt="a big dog", max_new_tokens=4, generate_kwargs={"num_beams": 3})
    options = ("--prompt", "a big dog", "--beams", 3, "--max-new-tokens", 4, "--dtype", "bf16")
    assert run("caption", photo, "--model", model, *options).out == f"{photo}: {row['generated_text']}\n"
    assert row["generated_text"].startswith("a big dog ")


def test_builtin_model_is_the_default(run, model, photos, expected, monkeypatch):
    monkeypatch.setattr(hfvlm.builtin, "builtin_model", lambda task: model)
    assert run("caption", photos, "--dtype", "fp32").out == lines(expected)


def test_missing_builtin_model(run, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(hfvlm.builtin, "files", lambda package: tmp_path)
    result = run("caption", photos)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: this installation has no built-in model")


def test_broken_images_are_named_and_skipped(run, model, photos, expected):
    (photos / "a0_empty.jpg").touch()
    (photos / "a1_text.jpg").write_text("no image")
    (photos / "a2_bomb.png").write_bytes(bomb())
    Image.effect_noise((200, 200), 80).save(photos / "a3_cut.jpg")
    (photos / "a3_cut.jpg").write_bytes((photos / "a3_cut.jpg").read_bytes()[:2000])
    (photos / "z.png").write_bytes(b"")
    result = run("caption", photos, photos / "gone.jpg", "--model", model, "--dtype", "fp32", "--batch-size", 2)
    assert result.code == 1
    assert result.out == lines(expected)
    errors = result.err.splitlines()
    reasons = {
        "gone.jpg": "no such file",
        "a0_empty.jpg": "0 bytes",
        "a1_text.jpg": "not an image",
        "a2_bomb.png": "too many pixels",
        "a3_cut.jpg": "truncated",
        "z.png": "0 bytes",
    }
    assert len(errors) == len(reasons)
    for line, (name, reason) in zip(errors, reasons.items()):
        assert line.startswith(f"error: {photos / name}: ")
        assert reason in line


def test_only_broken_images_load_no_model(run, photos, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(caption, "_load", load)
    result = run("caption", photos / "notes.txt")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"error: {photos / 'notes.txt'}: is not an image that can be read\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "gone: no such file or folder"),
        ("*.gif", "*.gif: matches no file"),
        ("void", "void: no image in this"),
    ],
)
def test_nothing_found(run, tmp_path, name, message):
    (tmp_path / "void" / "inner").mkdir(parents=True)
    result = run("caption", tmp_path / name)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_captions_come_as_batches_finish(run, model, photos, monkeypatch):
    """The second batch is opened only after the first one's captions are printed."""
    events = []
    opened, printed = caption.open_image, caption.print_line
    monkeypatch.setattr(caption, "open_image", lambda path: events.append("open") or opened(path))
    monkeypatch.setattr(caption, "print_line", lambda text: events.append("print") or printed(text))
    run("caption", photos, "--model", model, "--batch-size", 1)
    assert events == ["open", "print"] * 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", ""], 1, "empty prompt"),
        (["--prompt", "dog " * 60], 1, "60 tokens"),
        (["--beams", "0"], 2, "--beams"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--dtype", "fp8"], 2, "--dtype"),
        (["--model", "/no/such/folder"], 1, "/no/such/folder"),
    ],
)
def test_bad_options(run, model, photos, arguments, code, message):
    result = run("caption", photos, "--model", model, *arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_on_a_terminal(run, model, photos, expected, monkeypatch):
    """The bar goes to stderr, captions to stdout, each a line of its own though both share the screen."""
    out, err = io.StringIO(), io.StringIO()
    terminal = {"force_terminal": True, "width": 400, "color_system": "standard", "highlight": False}
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(caption, "stdout", lambda: Console(file=out, **terminal))
    monkeypatch.setattr(caption, "stderr", lambda: Console(file=err, **terminal))
    (photos / "a0.png").write_bytes(b"")
    result = run("caption", photos, "--model", model, "--dtype", "fp32")
    assert result.code == 1
    assert "captioning" in err.getvalue()
    assert "\x1b[31merror: " in err.getvalue()  # red
    for path, text in expected.items():
        assert f"\x1b[1;36m{path}\x1b[0m: {text}\n" in out.getvalue()
    assert out.getvalue().count("\n") == 3
    assert "captioning" not in out.getvalue()
