"""`hfvlm info`: the shelf, and what is installed."""

import importlib.metadata
import json

import torch
import transformers

from hfvlm import __version__
from hfvlm.cli import info
from hfvlm.registry import ARCHITECTURES


def test_json(run):
    said = json.loads(run("info", "--json").out)
    assert [row["model_type"] for row in said["architectures"]] == list(ARCHITECTURES)
    blip = next(row for row in said["architectures"] if row["name"] == "blip")
    assert blip["heads"]["AutoModelForImageTextToText"] == "BlipForConditionalGeneration"
    assert blip["pipelines"]["image-to-text"] == "AutoModelForImageTextToText"
    assert {"base", "large"} <= set(blip["variants"])
    installed = said["installed"]
    assert installed["hfvlm"] == __version__
    assert installed["packages"]["torch"] == torch.__version__
    assert installed["packages"]["transformers"] == transformers.__version__
    assert "pytest" in installed["extras"]["test"]
    assert installed["dtype"] in ("bfloat16", "float32")


def test_tables(run):
    result = run("info")
    assert result.code == 0
    for word in (
        "blip",
        "hfvlm_blip",
        "BlipForConditionalGeneration",
        "large",
        "image-to-text",
        __version__,
        "device",
    ):
        assert word in result.out


def test_what_is_not_installed_is_said(run, monkeypatch):
    monkeypatch.setattr(info, "_version", lambda name: None if name == "pytest" else "1.0")
    assert json.loads(run("info", "--json").out)["installed"]["extras"]["test"]["pytest"] is None
    assert "not installed" in run("info").out


def test_works_from_the_source_alone(run, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    installed = json.loads(run("info", "--json").out)["installed"]
    assert list(installed["packages"]) == ["torch", "transformers"]
    assert installed["extras"] == {}


def test_one_architecture(run):
    for name in ("blip", "hfvlm_blip"):
        assert json.loads(run("info", name, "--json").out)["model_type"] == "hfvlm_blip"
    result = run("info", "blip")
    assert "BlipModel" in result.out
    assert "Installed" not in result.out


def test_unknown_architecture_names_the_nearest(run):
    result = run("info", "blib")
    assert (result.code, result.out) == (1, "")
    assert "did you mean 'blip'?" in result.err
    assert result.err.count("\n") == 1
