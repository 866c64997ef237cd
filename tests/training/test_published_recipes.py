"""The recipes in `examples/recipes` that `hfvlm train` takes: each is whole, and a tiny model trains by it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_model, tiny_processor
from transformers import Trainer, TrainingArguments

from hfvlm.conversion.fusion_rules import CLASSES
from hfvlm.training.plan import prepare
from hfvlm.training.recipe import read_recipe


RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
#: recipe -> learning rate after the first step of 100, and after all
RATES = {
    "albef_entailment": (1e-5 + 1e-5 / 9, 1e-6),
    "albef_nlvr": (1e-5 + 1e-5 / 9, 1e-6),
    "albef_pretrain": (2e-5, 1e-5),
    "albef_retrieval": (1e-5, 1e-6),
    "albef_text_assignment": (1e-5 + 1e-5 / 9, 2e-5),
    "albef_vqa": (1e-5 + 1e-5 / 9, 1e-6),
    "blip_pretrain": (3e-4 / 10, 3.6e-5),
    "blip_caption": (1e-5, 0.0),
    "blip_nlvr": (3e-5, 0.0),
    "blip_retrieval": (1e-5, 0.0),
    "blip_vqa": (2e-5, 0.0),
}
#: whose folder a recipe starts from, where it is not a pretraining's
STARTS = {
    "albef_nlvr": "AutoModelForTextAssignment",
    "albef_vqa": "AutoModelForVisualQuestionAnswering",
    "blip_vqa": "AutoModelForVisualQuestionAnswering",
}
#: task -> the columns of its rows, as the recipes say that they are called and filled; other tasks have captions
COLUMNS = {
    "entailment": {"sentence": "a dog", "label": "neutral"},
    "visual-reasoning": {"image_second": "1.png", "sentence": "a dog", "label": "True"},
    "visual-question-answering": {"question": "a dog", "answer": ["red", "red", "the cat"], "weight": 0.5},
}


def write_rows(task: str, data: Path, folder: Path) -> Path:
    """Rows of the photos as the recipes of a task want them."""
    if task not in COLUMNS:
        return data / "photos.jsonl"
    (folder / "rows.json").write_text(json.dumps([{"image": f"{i}.png", **COLUMNS[task]} for i in range(4)]))
    return folder / "rows.json"


@pytest.mark.parametrize("name", RATES)
def test_a_tiny_model_trains_by_a_published_recipe(name, data, tmp_path):
    path = RECIPES / f"{name}.yaml"
    said = yaml.safe_load(path.read_text())
    architecture = name.partition("_")[0]
    start, processor = tmp_path / "start", tmp_path / "processor"
    tiny_processor(architecture).save_pretrained(processor)
    own = said["model"].get("config", {})
    config = {"vision_config": {"image_size": 48}, **{name: own[name] for name in ("id2label",) if name in own}}
    rows = write_rows(said["task"], data, tmp_path)
    if "from" in said["model"]:
        tiny_model(architecture, STARTS.get(name, "AutoModelForPreTraining")).save_pretrained(start)
        tiny_processor(architecture).save_pretrained(start)
        model = {"from": str(start), "config": config}
    else:
        model = {"architecture": architecture, "variant": "tiny", "config": config}
    changes = {"model": model, "output": str(tmp_path / "output"), "processor": str(processor), "max_length": 20}
    training = {"per_device_train_batch_size": 2, "max_steps": 2, "use_cpu": True, "save_strategy": "no"}
    training |= {"disable_tqdm": True, "logging_steps": 1}
    for place in said["data"]:
        changes |= {f"data.{place}.path": str(rows), f"data.{place}.images": str(data)}
    changes |= {f"training.{field}": value for field, value in training.items()}
    plan = prepare(read_recipe(path, {field: json.dumps(value) for field, value in changes.items()}))
    if "from" in said["model"]:  # what is not there starts as a copy, but for the head itself
        fresh = {line.split(" of ")[1] for line in plan.fresh + plan.copied}
        copies = {
            f"teacher_{part}": part for part in getattr(plan.model, "taught_parts", ()) if f"teacher_{part}" in fresh
        }
        assert fresh <= {"cls_head", "ta_head", "text_model", "teacher_step", *copies}
        for copy, part in copies.items():
            theirs = dict(getattr(plan.model, copy).named_parameters())
            for weight, value in getattr(plan.model, part).named_parameters():
                assert torch.equal(theirs[weight], value), f"{copy}.{weight}"
    assert plan.train().is_dir()


@pytest.mark.parametrize("name", ["albef_entailment", "albef_nlvr", "blip_nlvr"])
def test_recipes_name_the_classes_in_the_order_of_the_released_checkpoints(name):
    said = read_recipe(RECIPES / f"{name}.yaml").model["config"]["id2label"]
    assert tuple(said[i] for i in range(len(said))) == CLASSES["entailment" if "entail" in name else "reasoning"]


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_goes_as_published(name, tmp_path):
    """From step to step of a hundred, ten of them warm-up where there is one."""
    said = read_recipe(RECIPES / f"{name}.yaml").training
    warmup = 10 if said.get("warmup_steps") else 0
    arguments = TrainingArguments(str(tmp_path), **{**said, "warmup_steps": warmup, "use_cpu": True})
    trainer = Trainer(torch.nn.Linear(1, 1), arguments)
    trainer.create_optimizer_and_scheduler(100)
    rates = [trainer.optimizer.param_groups[0]["lr"]]
    for _ in range(100):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    first, last = RATES[name]
    assert rates[1] == pytest.approx(first, rel=2e-2)
    assert max(rates) == pytest.approx(said["learning_rate"])
    assert rates[100] == pytest.approx(last, abs=5e-8)


def test_the_readme_recipe_trains(data, tmp_path, monkeypatch):
    section = (RECIPES.parents[1] / "README.md").read_text(encoding="utf-8").split("## Training by a recipe\n")[1]
    (tmp_path / "recipe.yaml").write_text(section.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "photos").symlink_to(data)
    (data / "captions.jsonl").write_text((data / "photos.jsonl").read_text())
    tiny_model("blip", "AutoModelForPreTraining", queue_size=64).save_pretrained(tmp_path / "blip-pretrain")
    tiny_processor("blip").save_pretrained(tmp_path / "blip-pretrain")
    monkeypatch.chdir(tmp_path)
    changes = {"training.use_cpu": "true", "training.max_steps": "1", "training.disable_tqdm": "true"}
    plan = prepare(read_recipe("recipe.yaml", changes))
    assert plan.train() == Path("blip-retrieval/model") and plan.train_rows.augment == 0.7
