"""Keys of a recipe: known ones of the right type, those that must be there, and what holds between them."""

from pathlib import Path

import pytest

from hfvlm.training.mistakes import RecipeError, nearest
from hfvlm.training.recipe import read_recipe


WHOLE = """
task: retrieval
model: {architecture: blip, variant: tiny}
processor: folder
data:
  columns: {image: path}
  train: photos.jsonl
  evaluation: {path: more.json, split: val, columns: {captions: text}}
training: {learning_rate: 1e-5, eval_strategy: no, bf16: true}
alpha_ramp: epoch
output: out
"""


@pytest.fixture
def mistakes(tmp_path):
    """What is wrong with a recipe of this text."""

    def call(text: str, **overrides: str) -> list[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError) as error:
            read_recipe(path, {name.replace("__", "."): value for name, value in overrides.items()})
        return error.value.mistakes

    return call


def test_a_whole_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(WHOLE)
    recipe = read_recipe(path, {"training.max_steps": "3", "alpha": "1", "augment": "true"})
    assert recipe.train.path == Path("photos.jsonl") and recipe.train.columns == {"image": "path"}
    assert recipe.evaluation.split == "val" and recipe.evaluation.columns == {"image": "path", "captions": "text"}
    assert recipe.training == {"learning_rate": 1e-5, "eval_strategy": "no", "bf16": True, "max_steps": 3}
    assert recipe.alpha == 1 and recipe.alpha_ramp == 1.0 and recipe.augment == 0.7
    assert recipe.raw["training"]["max_steps"] == 3


@pytest.mark.parametrize(
    "said, share",
    [("true", 0.7), ("false", None), ("0.5", 0.5), ("1", 1), ("null", None), ("rand_augment", "rand_augment")],
)
def test_random_views(tmp_path, said, share):
    path = tmp_path / "recipe.yaml"
    path.write_text(WHOLE)
    assert read_recipe(path, {"augment": said}).augment == share


def test_unknown_keys_name_the_nearest_at_every_level(mistakes):
    found = mistakes(
        WHOLE.replace("train:", "trian:"), agument="true", model__varient="tiny", data__evaluation__spilt="a"
    )
    assert sorted(found) == [
        "agument: is no key here; did you mean 'augment'?",
        "data.evaluation.spilt: is no key here; did you mean 'split'?",
        "data.train: is missing",
        "data.trian: is no key here; did you mean 'train'?",
        "model.varient: is no key here; did you mean 'variant'?",
    ]


def test_a_field_of_training_at_the_top(mistakes):
    found = mistakes(WHOLE, learning_rate="1e-5")
    assert found == ["learning_rate: is no key here; did you mean training.learning_rate?"]


def test_no_file(tmp_path):
    for path, message in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(RecipeError) as error:
            read_recipe(path)
        assert error.value.mistakes[0].startswith(f"{path}: {message}")


def test_required_keys(mistakes):
    assert mistakes("alpha: 0.4") == [f"{name}: is missing" for name in ("task", "model", "data", "output")]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("captions_per_image", "2.5", "captions_per_image: must be a whole number, got 2.5 (a number)"),
        ("captions_per_image", "0", "captions_per_image: must be at least 1, got 0"),
        (
            "augment",
            "maybe",
            "augment: must be true, false, the least share of the area, or rand_augment, got 'maybe'",
        ),
        ("alpha", "1.5", "alpha: must be between 0 and 1, got 1.5"),
        ("alpha", "-0.1", "alpha: must be between 0 and 1, got -0.1"),
        ("alpha", "true", "alpha: must be a number, got True (true or false)"),
        ("alpha_ramp", "epochs", "alpha_ramp: must be `epoch`, or how many epochs, got 'epochs'"),
        ("alpha_ramp", "-1", "alpha_ramp: must be at least 0, got -1"),
        ("max_length", "2", "max_length: must be at least 3, got 2"),
        ("samples", "-1", "samples: must be at least 0, got -1"),
        ("training", "[1]", "training: must be a mapping, got [1] (a list)"),
        ("data.train", "3", "data.train: must be text or a mapping, got 3 (a whole number)"),
        ("data.columns.image", "3", "data.columns.image: must be the name of a column, got 3 (a whole number)"),
        ("task.name", "x", "task.name: cannot be set: task is text in the recipe, not a mapping"),
        (
            "model.from",
            "x",
            "model: must have `from` (a folder or Hub name) or `architecture` (for a fresh one), not both",
        ),
        ("model.variant", "", "model.variant: is missing: name a size of the architecture, or its fields in `config`"),
        (
            "model",
            "{from: x, variant: y}",
            "model.variant: is for a fresh model; one that is loaded has a size already",
        ),
        (
            "processor",
            "null",
            "processor: is missing: a fresh model has none of its own, name a folder that holds one",
        ),
    ],
)
def test_a_wrong_value(mistakes, key, value, message):
    assert mistakes(WHOLE, **{key.replace(".", "__"): value}) == [message]


def test_samples_need_an_evaluation(mistakes):
    found = mistakes(WHOLE, samples="2", data__evaluation="null")
    assert found == ["samples: are shown at each evaluation: name data.evaluation, too"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("task: [", "is no YAML that can be read"),
        ("task: a\ntask: b", "'task' stands twice"),
        ("- task", "must be a mapping of keys (task, model, data, ...), it is a list"),
        ("", "it is nothing"),
    ],
)
def test_what_is_no_recipe(mistakes, text, message):
    found = mistakes(text)
    assert len(found) == 1 and message in found[0]


def test_a_name_that_is_like_none_is_told_all():
    assert nearest("zzz", ["left", "right"]) == "known: left, right"
