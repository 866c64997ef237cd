"""TorchScript archives: their tensors come out, and nothing of theirs runs."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from hfvlm.conversion.checkpoint import read_checkpoint
from hfvlm.conversion.torchscript import is_archive, read_archive


class Block(nn.Module):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.linear = nn.Linear(3, 4).to(dtype)
        self.norm = nn.BatchNorm1d(4)
        self.sizes = [1, 2]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(rows.to(self.linear.weight.dtype)).float())


class Model(nn.Module):
    """What archives hold: modules in lists, both precisions, shared and transposed tensors, and numbers."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(torch.float16), Block(torch.float32), Block(torch.bfloat16)])
        self.transposed = nn.Parameter(torch.randn(2, 5).t())
        self.row = nn.Parameter(torch.randn(4, 6)[1])
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("input_resolution", torch.tensor(32))
        self.register_buffer("switches", torch.tensor([True, False]))
        self.context_length = 7
        self.labels = {"a": 1}

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            rows = block(rows)[:, :3]
        return rows


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    script = torch.jit.script(Model().eval())
    torch.jit.save(script, path)
    return path, script.state_dict()


def rewritten(archive: Path, target: Path, **members: bytes) -> Path:
    """The archive with members (by the last part of their name) replaced, or taken out by None."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            part = name.split("/", 1)[1]
            data = members.get(part, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def test_tensors_are_those_of_the_state_dict(archive):
    path, expected = archive
    assert is_archive(path)
    tensors = read_archive(path)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name
    assert read_checkpoint(path).tensors.keys() == expected.keys()


def test_traced_archives_too(tmp_path):
    model = Model().eval()
    traced = torch.jit.trace(model, torch.randn(2, 3))
    torch.jit.save(traced, tmp_path / "traced.pt")
    tensors, expected = read_archive(tmp_path / "traced.pt"), model.state_dict()
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_program_is_not_read(archive, tmp_path):
    """The code may be anything: it is not even parsed."""
    with zipfile.ZipFile(archive[0]) as old:
        code = {name.split("/", 1)[1]: b"raise SystemExit" for name in old.namelist() if "/code/" in name}
    assert len(code) > 2
    broken = rewritten(archive[0], tmp_path / "broken.pt", **code)
    assert read_archive(broken).keys() == archive[1].keys()
    with pytest.raises(RuntimeError):
        torch.jit.load(broken)


def test_what_torch_saves_is_no_archive(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "new.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not is_archive(tmp_path / "new.pt") and not is_archive(tmp_path / "old.pt")


class Evil:
    """Asks for a call when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "make",
    [
        lambda marker: Evil(open, str(marker), "w"),
        lambda marker: {"weight": Evil(exec, f"open({str(marker)!r}, 'w')")},
        lambda marker: Evil(getattr, "text", "upper"),
        lambda marker: torch.load,
        lambda marker: torch.jit.load,
        lambda marker: torch._utils._rebuild_parameter,
    ],
    ids=["a call", "exec inside", "getattr", "a function of torch", "of torch.jit", "another rebuilder"],
)
def test_anything_but_modules_and_tensors_is_refused(make, archive, tmp_path):
    marker = tmp_path / "it-ran"
    evil = rewritten(archive[0], tmp_path / "evil.pt", **{"data.pkl": pickle.dumps(make(marker), protocol=2)})
    with pytest.raises(pickle.UnpicklingError, match="the archive asks for"):
        read_archive(evil)
    with pytest.raises(ValueError, match="refused: it holds more than tensors.*the archive asks for"):
        read_checkpoint(evil)
    assert not marker.exists()


@pytest.mark.parametrize(
    "named", [b"torch._utils\n_rebuild_tensor_v2", b"__torch__\nModel", b"collections\nOrderedDict"]
)
def test_what_a_description_sets_does_not_last(named, archive, tmp_path):
    """A pickle can set attributes of what it is given, which is made anew for each archive."""
    state = b"N}X\x06\x00\x00\x00fieldsK\x01s\x86"  # (None, {"fields": 1})
    evil = rewritten(archive[0], tmp_path / "evil.pt", **{"data.pkl": b"\x80\x02c" + named + b"\n" + state + b"b."})
    with pytest.raises(ValueError, match="evil.pt"):
        read_checkpoint(evil)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "fields")
    assert read_archive(archive[0]).keys() == archive[1].keys()


@pytest.mark.parametrize("member", ["data/0", "data.pkl"])
def test_damaged_archives_are_named(member, archive, tmp_path):
    for data in (None, b"\x80"):
        damaged = rewritten(archive[0], tmp_path / "damaged.pt", **{member: data})
        with pytest.raises(ValueError, match="damaged.pt"):
            read_checkpoint(damaged)


def test_a_tensor_cannot_reach_outside_of_its_storage(archive, tmp_path):
    with zipfile.ZipFile(archive[0]) as old:
        name = next(name for name in old.namelist() if name.endswith("data/1"))
        short = old.read(name)[:-2]
    damaged = rewritten(archive[0], tmp_path / "short.pt", **{"data/1": short})
    with pytest.raises(ValueError, match="short.pt is damaged"):
        read_checkpoint(damaged)
