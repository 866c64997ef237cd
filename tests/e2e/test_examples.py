"""What the README and `examples/` show runs as it stands there: a few photos, random weights, a few steps."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tiny import WORDS, tiny_processor
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

from hfvlm import AlignModel, ClipModel
from hfvlm.conversion.efficientnet import RULES
from hfvlm.conversion.rules import apply, invert
from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.encoders.efficientnet import EfficientNetTower


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PHOTOS = {"train": 8, "val": 4, "test": 4}
COLOURS = {"dog": "brown", "child": "blue"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Photos of a brown dog or a blue child, five captions each, as the examples want them."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for split, number in PHOTOS.items():
        for i in range(number):
            thing, colour = list(COLOURS.items())[i % 2]
            name = f"{split}{i}.png"
            Image.effect_noise((40, 36 + i), 60).convert("RGB").save(folder / name)
            captions = [
                f"a {colour} {thing} {verb} on the grass ." for verb in ("runs", "sits", "stands", "jumps", "is")
            ]
            rows.append({"image": name, "captions": captions, "split": split})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    """The options that name random weights: EfficientNet-Lite0 and a narrow MiniLM, in their own formats."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tower = EfficientNetTower(EfficientNetTowerConfig(lite=True))
    torch.save(apply(invert(RULES), tower.state_dict()).tensors, folder / "lite0.pth")
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "child", *WORDS])}
    )
    tokenizer.save_pretrained(folder)
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 6}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **width)
    save_file(BertModel(config).state_dict(), folder / "model.safetensors")
    config.to_json_file(folder / "config.json")
    return ["--efficientnet", str(folder / "lite0.pth"), "--minilm", str(folder)]


def short_recipe(name: str, folder: Path, **sections: dict[str, Any]) -> Path:
    """A recipe of the examples with some of its values replaced; those that it names must be in it."""
    recipe = yaml.safe_load((EXAMPLES / "recipes" / f"{name}.yaml").read_text())

    def replace(section: dict[str, Any], values: dict[str, Any]) -> None:
        for key, value in values.items():
            assert key in section, f"{name}.yaml has no {key}"
            if isinstance(value, dict):
                replace(section[key], value)
            else:
                section[key] = value

    replace(recipe, sections)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example as `python examples/NAME.py OPTIONS` would, in this process; gives what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name: str, *options: Any) -> str:
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, options)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def result_of(output: str) -> dict[str, float]:
    return json.loads(re.search(r"^(?:test: )?(\{.*\})$", output.splitlines()[-1])[1])


STAGE = {"epochs": 1, "batch_size": 4}


def test_the_readme_trains_two_towers(data, tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Contrast at any batch size\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    for ours, tiny in (('"vit_b_32"', '"tiny"'), ("=8192", "=4"), ("_size=64", "_size=2"), ("_size=1024", "_size=3")):
        assert ours in code
        code = code.replace(ours, tiny)
    (tmp_path / "photos").symlink_to(data)
    tiny_processor("hfvlm_clip").save_pretrained(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert isinstance(names["model"], ClipModel)
    assert names["model"].config.micro_batch_size == 2


@pytest.mark.parametrize(("architecture", "model_class"), [("clip", ClipModel), ("align", AlignModel)])
def test_two_towers(architecture, model_class, data, weights, example, tmp_path):
    stages = {"features": {**STAGE, "views": 2}}
    if architecture == "align":
        stages["end_to_end"] = {**STAGE, "micro_batch_size": 2}
    recipe = short_recipe(f"flickr8k_{architecture}", tmp_path, model={"image_size": 32}, stages=stages)
    options = ["--data", data, *weights, "--recipe", recipe, "--output", tmp_path / "out"]
    result = result_of(example("train_two_towers", *options))
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    assert type(model) is model_class
    assert model.config.micro_batch_size is None
    said = result_of(example("evaluate_retrieval", "--data", data, "--model", tmp_path / "out" / "model"))
    assert said == {**result, "photos": PHOTOS["test"]}
    again = result_of(example("train_two_towers", *options))
    assert again == result, "run again, a finished training has nothing left to do"
    for name, value in AutoModel.from_pretrained(tmp_path / "out" / "model").state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
