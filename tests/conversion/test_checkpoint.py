"""Reading checkpoints: wrappers are taken off, and what is unsafe or no checkpoint is refused."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hfvlm.conversion.checkpoint import read_checkpoint


TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def same(tensors) -> bool:
    return tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)


@pytest.mark.parametrize(
    "saved",
    [
        TENSORS,
        {"model": TENSORS, "epoch": 3, "optimizer": {"state": {}}},
        {"state_dict": {f"module.{key}": value for key, value in TENSORS.items()}},
        {"model_state_dict": {f"module.{key}": value for key, value in TENSORS.items()}, "step": 7},
        {"state_dict": {"model": TENSORS}},
    ],
)
def test_takes_off_what_training_scripts_wrap(saved, tmp_path):
    torch.save(saved, tmp_path / "x.pth")
    assert same(read_checkpoint(tmp_path / "x.pth").tensors)


def test_module_is_kept_where_not_all_keys_have_it(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").tensors.keys() == {"module.a", "b"}


def test_the_old_pickle_format_and_safetensors(tmp_path):
    torch.save(TENSORS, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "x.bin").tensors)
    save_file(TENSORS, tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(str(tmp_path / "x.safetensors"))
    assert same(checkpoint.tensors) and checkpoint.config is None and checkpoint.folder == tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "whatever.pth"])
def test_a_folder(name, tmp_path):
    (save_file if name.endswith("tensors") else torch.save)(TENSORS, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    checkpoint = read_checkpoint(tmp_path)
    assert same(checkpoint.tensors) and checkpoint.config == {"model_type": "blip"}


@pytest.mark.parametrize("suffix, index", [("safetensors", "model"), ("bin", "pytorch_model")])
def test_a_sharded_folder(suffix, index, tmp_path):
    save = save_file if suffix == "safetensors" else torch.save
    names = {key: f"part-{i}.{suffix}" for i, key in enumerate(TENSORS)}
    for key, name in names.items():
        save({key: TENSORS[key]}, tmp_path / name)
    (tmp_path / f"{index}.{suffix}.index.json").write_text(json.dumps({"weight_map": names}))
    assert same(read_checkpoint(tmp_path).tensors)
    (tmp_path / names["a.bias"]).unlink()
    with pytest.raises(FileNotFoundError, match=names["a.bias"]):
        read_checkpoint(tmp_path)


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "elsewhere.safetensors")
    (tmp_path / "folder").mkdir()
    index = {"weight_map": dict.fromkeys(TENSORS, "../elsewhere.safetensors")}
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="not in the folder"):
        read_checkpoint(tmp_path / "folder")


class Payload:
    """Pickles as a call that makes a folder."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("kind", ["zip", "old torch", "bare pickle", "beside tensors", "shard"])
def test_a_malicious_pickle_is_refused_and_does_not_run(kind, tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pth"
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    elif kind == "shard":
        path = tmp_path / "folder"
        path.mkdir()
        torch.save(Payload(trace), path / "part.bin")
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "part.bin"}}))
    else:
        saved = {"model": TENSORS, "args": Payload(trace)} if kind == "beside tensors" else Payload(trace)
        torch.save(saved, path, _use_new_zipfile_serialization=kind != "old torch")
    with pytest.raises(ValueError, match="is refused: it holds more than tensors"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
def test_files_that_are_no_checkpoint(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is empty \(0 bytes\)"):
        read_checkpoint(path)
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(ValueError, match="refused|damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-100] if suffix == "pth" else path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("saved", [{}, {"epoch": 3}, {"model": {}}, [torch.ones(2)], torch.ones(2)])
def test_files_without_named_tensors(saved, tmp_path):
    torch.save(saved, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_checkpoint(tmp_path / "x.pth")


def test_entries_that_are_no_tensors(tmp_path):
    torch.save({**TENSORS, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="beside its tensors that are none: epoch"):
        read_checkpoint(tmp_path / "x.pth")


def test_nothing_there_and_folders_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        read_checkpoint(tmp_path)


def test_a_folder_with_several_files_asks_which(tmp_path):
    for name in ("one.pth", "two.pth"):
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(ValueError, match="name one: one.pth, two.pth"):
        read_checkpoint(tmp_path)
