"""`hfvlm evaluate`: scores on stdout, and what is wrong with the data before a model is loaded."""

import json

import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor
from two_towers import save_stock_clip, stock_clip, stock_processor

from hfvlm.cli.evaluate import _ROWS, Task
from hfvlm.data.captions import read_captions
from hfvlm.data.judgements import read_judgements
from hfvlm.data.questions import read_questions
from hfvlm.embedder import Embedder
from hfvlm.evaluation import tasks
from hfvlm.pipelines import pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photos with captions and with questions, in two splits."""
    folder = tmp_path_factory.mktemp("data")
    captions, questions, judged = [], [], []
    for i in range(6):
        Image.effect_noise((40, 36 + i), 60 + i).convert("RGB").save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "split": "test" if i < 4 else "train"}
        captions.append({**row, "captions": [f"a dog on the grass {i}", "a red ball"]})
        questions.append({**row, "question": "what is it", "answer": "dog" if i else "Red_ball"})
        judged.append({**row, "image_second": f"{5 - i}.png", "text": "a dog on the grass", "label": i % 2})
    for name, rows in (("captions", captions), ("vqa", questions), ("judged", judged)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model is loaded")

    for name in ("_pipeline", "_classifier", "load_embedder"):
        monkeypatch.setattr(f"hfvlm.cli.evaluate.{name}", refuse)


def close(scores):
    return {name: pytest.approx(score, abs=1e-5) for name, score in scores.items()}


def test_captioning(run, model, data):
    result = run(
        "evaluate", "captioning", "--data", data / "captions.jsonl", "--model", model, "--dtype", "fp32", "--json"
    )
    assert (result.code, result.err) == (0, "")
    scores = tasks.evaluate_captioning(
        pipeline("image-to-text", model), read_captions(data / "captions.jsonl", "test")
    )
    about = {"task": "captioning", "model": model, "split": "test", "images": 4}
    assert json.loads(result.out) == {**about, **close(scores)}


@pytest.mark.parametrize(
    ("options", "split", "number"), [([], "test", 4), (["--limit", 3], "test", 3), (["--split", "all"], "all", 6)]
)
def test_retrieval(run, data, tmp_path, options, split, number):
    clip = save_stock_clip(tmp_path)
    arguments = ("--data", data / "captions.jsonl", "--model", clip, "--dtype", "fp32", *options)
    rows = read_captions(data / "captions.jsonl", None if split == "all" else split)[:number]
    scores = tasks.evaluate_retrieval(Embedder(stock_clip(), stock_processor()), rows)
    about = {"task": "retrieval", "model": clip, "split": split, "images": number}
    assert json.loads(run("evaluate", "retrieval", *arguments, "--json").out) == {**about, **close(scores)}
    lines = run("evaluate", "retrieval", *arguments).out.splitlines()
    assert lines[:4] == [f"{name}: {value}" for name, value in about.items()]
    assert lines[4:] == [f"{name}: {score:.4f}" for name, score in scores.items()]


def test_the_nearest_are_judged_again(run, data, tmp_path):
    model, processor = tiny_model("blip", "AutoModelForImageTextRetrieval"), tiny_processor("blip")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    arguments = ("--data", data / "captions.jsonl", "--model", tmp_path, "--dtype", "fp32", "--rerank", 2, "--json")
    rows = read_captions(data / "captions.jsonl", "test")
    scores = tasks.evaluate_retrieval(Embedder(model, processor), rows, rerank=2)
    about = {"task": "retrieval", "model": str(tmp_path), "split": "test", "images": 4, "rerank": 2}
    assert json.loads(run("evaluate", "retrieval", *arguments).out) == {**about, **close(scores)}
    clip = save_stock_clip(tmp_path / "clip")
    result = run("evaluate", "retrieval", "--data", data / "captions.jsonl", "--model", clip, "--rerank", 2)
    assert result.code == 1 and "rerank needs a model that judges pairs" in result.err


def test_answers_are_chosen_from_a_file(run, data, tmp_path):
    answers = tmp_path / "answers.txt"
    answers.write_text("red ball\n\na dog\nred ball\n")
    model, processor = tiny_model("blip", "AutoModelForVisualQuestionAnswering"), tiny_processor("blip")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    arguments = ("evaluate", "vqa", "--data", data / "vqa.jsonl", "--model", tmp_path, "--dtype", "fp32", "--json")
    result = run(*arguments, "--candidates", answers)
    pipe = pipeline("visual-question-answering", str(tmp_path), device="cpu")
    rows = read_questions(data / "vqa.jsonl", "test")
    scores = tasks.evaluate_vqa(pipe, rows, candidates=["red ball", "a dog"])
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["vqa_accuracy"] == pytest.approx(scores["vqa_accuracy"])
    assert json.loads(result.out)["candidates"] == 2
    assert "no such file" in run(*arguments, "--candidates", tmp_path / "none.txt").err
    answers.write_text("\n")
    assert "answers.txt: has no text" in run(*arguments, "--candidates", answers).err


@pytest.mark.parametrize("option", [("--rerank", 3), ("--candidates", "answers.txt")])
def test_an_option_of_another_task_is_refused(run, data, no_model, option):
    result = run("evaluate", "captioning", "--data", data / "captions.jsonl", *option)
    assert result.code == 2 and "is for" in result.err


def test_vqa(run, data, monkeypatch):
    loaded = []

    def pipe(rows, batch_size):
        assert rows[0] == {"image": str(data / "0.png"), "question": "what is it"}
        return [[{"answer": "red ball", "score": 1.0}] for _ in rows]

    monkeypatch.setattr("hfvlm.pipelines.pipeline", lambda *args, **kwargs: loaded.append(args) or pipe)
    result = run("evaluate", "vqa", "--data", data / "vqa.jsonl", "--model", "someone/answers", "--json")
    about = {"task": "vqa", "model": "someone/answers", "split": "test", "questions": 4}
    assert json.loads(result.out) == {**about, "vqa_accuracy": 0.25}
    assert loaded == [("visual-question-answering", "someone/answers")]


@pytest.mark.parametrize("task", ["entailment", "reasoning"])
def test_classes(run, data, tmp_path, task):
    auto = {"entailment": "AutoModelForVisualEntailment", "reasoning": "AutoModelForVisualReasoning"}[task]
    model = tiny_model("albef", auto)
    model.save_pretrained(tmp_path)
    tiny_processor("albef").save_pretrained(tmp_path)
    result = run("evaluate", task, "--data", data / "judged.jsonl", "--model", tmp_path, "--dtype", "fp32", "--json")
    assert (result.code, result.err) == (0, "")
    rows = read_judgements(data / "judged.jsonl", "test")
    scores = tasks.evaluate_classes(model, tiny_processor("albef"), rows)
    about = {"task": task, "model": str(tmp_path), "split": "test", _ROWS[Task(task)]: 4}
    assert json.loads(result.out) == {**about, **close(scores)}
    result = run("evaluate", task, "--data", data / "judged.jsonl")
    assert result.code == 2 and f"there is no built-in model for {task}" in result.err


def test_the_built_in_model_is_the_default(run, data, monkeypatch):
    from hfvlm.builtin import builtin_model

    loaded = []

    def pipe(images, batch_size):
        return [[{"generated_text": "a dog"}] for _ in images]

    monkeypatch.setattr("hfvlm.pipelines.pipeline", lambda *args, **kwargs: loaded.append(args) or pipe)
    result = run("evaluate", "captioning", "--data", data / "captions.jsonl")
    assert "model: the built-in model\n" in result.out
    assert loaded == [("image-to-text", str(builtin_model("image-to-text")))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captioning", "--data", "none.jsonl"], "--data none.jsonl: no such file"),
        (["captioning", "--data", "."], "--data .: no such file, but a folder: name the file in it"),
        (["captioning", "--data", "captions.jsonl", "--split", "val"], "no row of split 'val'; it has test, train"),
        (["captioning", "--data", "vqa.jsonl"], "vqa.jsonl:1: has no 'captions' that is a list of strings"),
        (["retrieval", "--data", "vqa.jsonl"], "vqa.jsonl:1: has no 'captions' that is a list of strings"),
        (["vqa", "--data", "captions.jsonl"], "captions.jsonl:1: has no 'question'"),
        (["reasoning", "--data", "captions.jsonl"], "captions.jsonl:1: has no 'image_second'"),
        (["entailment", "--data", "vqa.jsonl"], "vqa.jsonl:1: has no 'text'"),
    ],
)
def test_bad_data_is_refused_before_a_model_is_loaded(run, data, monkeypatch, no_model, arguments, message):
    monkeypatch.chdir(data)
    result = run("evaluate", *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ") and message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "gone.png", "captions": ["a dog"]}, "images of 1 of 1 rows are missing, as "),
        ({"image": "a.png", "captions": []}, "needs 'captions', a list of at least one string"),
        ({"image": "a.png", "captions": "a dog"}, "has no 'captions' that is a list of strings"),
    ],
)
def test_bad_rows_are_refused_before_a_model_is_loaded(run, tmp_path, no_model, row, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "split": "test"}))
    result = run("evaluate", "captioning", "--data", tmp_path / "rows.jsonl")
    assert (result.code, result.out) == (1, "")
    assert message in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captionin", "--data", "captions.jsonl"], "'captionin' is not one of"),
        (["captioning"], "Missing option '--data'"),
        (["captioning", "--data", "captions.jsonl", "--limit", "0"], "'--limit'"),
    ],
)
def test_wrong_calls(run, data, monkeypatch, arguments, message):
    monkeypatch.chdir(data)
    result = run("evaluate", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
