"""From a recipe to a run: what is checked before it, what it trains, and that it goes on where it was killed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import tiny_config, tiny_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from hfvlm import pipeline
from hfvlm.data.shards import Kept, ShardFolder
from hfvlm.training.mistakes import RecipeError
from hfvlm.training.model import _counts, _is_copy
from hfvlm.training.plan import Plan, prepare


@pytest.fixture
def mistakes(read):
    """What is wrong with a recipe."""

    def call(recipe: dict, resume: bool = False) -> list[str]:
        with pytest.raises(RecipeError) as error:
            prepare(read(recipe), resume)
        return error.value.mistakes

    return call


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize(
    "step, workers", [(1, 0), (2, 0), (3, 2)], ids=["within an epoch", "between epochs", "with workers"]
)
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(recipe, read, tmp_path, step, workers):
    """With a teacher, a queue, dropout, random views and drawn captions, evaluation and samples; the later checkpoint,
    which the kill left half-written, is passed over."""
    recipe |= {"alpha_ramp": "epoch", "samples": 1}
    recipe["training"] |= {"save_steps": 1, "dataloader_num_workers": workers}
    whole = prepare(read(recipe)).train()
    start, killed = whole.parent / f"checkpoint-{step}", tmp_path / "killed"
    shutil.copytree(start, killed / start.name)
    shutil.copytree(whole.parent / "checkpoint-4", killed / "checkpoint-4")
    (killed / "checkpoint-4" / "trainer_state.json").unlink()
    plan = prepare(read({**recipe, "output": str(killed)}), resume=True)
    assert plan.checkpoint.name == start.name
    resumed, expected, before = weights(plan.train()), weights(whole), weights(start)
    assert expected.keys() == resumed.keys() and "image_queue.features" in expected
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    for part in ("itm_head", "vision_proj", "teacher_vision_proj"):
        assert not torch.equal(before[f"{part}.weight"], expected[f"{part}.weight"])


@pytest.mark.parametrize(
    "task, architecture, texts",
    [
        ("captioning", "blip", 2),
        ("contrastive", "clip", 1),
        ("pretraining", "albef", 2),
        ("pretraining", "blip", 1),
        ("retrieval", "albef", 1),
    ],
)
def test_every_task_trains_evaluates_and_shows_samples(recipe, read, processors, task, architecture, texts):
    recipe |= {"task": task, "processor": processors[architecture], "captions_per_image": texts, "samples": 2}
    recipe["model"]["architecture"] = architecture
    recipe["training"] |= {"max_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 1}
    shown = []
    plan = prepare(read(recipe))
    before = {name: value.clone() for name, value in plan.model.state_dict().items()}
    folder = plan.train(shown.append)
    assert len(shown) == 2 and shown[0].startswith("step 1: 8.png: ") and "(data: 'a " in shown[0]
    after = weights(folder)
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert not (folder / "training_args.bin").exists()
    AutoProcessor.from_pretrained(folder)


def test_a_trained_model_is_the_start_of_another_task(recipe, read, tmp_path):
    tiny_model("blip", "AutoModelForPreTraining", momentum=None).save_pretrained(tmp_path / "start")
    recipe |= {"task": "captioning", "model": {"from": str(tmp_path / "start")}}
    plan = prepare(read(recipe))
    assert plan.fresh == [] and torch.equal(
        plan.model.vision_model.cls_token, weights(tmp_path / "start")["vision_model.cls_token"]
    )
    tiny_model("blip", "AutoModelForImageTextRetrieval").save_pretrained(tmp_path / "start")
    lines = prepare(read(recipe)).lines()
    assert any("starts fresh" in line and "weights of lm_head" in line for line in lines)


def test_what_of_a_start_is_missing_is_fresh_or_a_copy(recipe, read, tmp_path):
    tiny_model("blip", "AutoModelForImageTextRetrieval", momentum=None).save_pretrained(tmp_path / "start")
    recipe |= {"model": {"from": str(tmp_path / "start"), "config": {"momentum": 0.9}}, "task": "pretraining"}
    plan = prepare(read(recipe))
    assert "2 weights of teacher_vision_proj" in plan.copied and "3 weights of image_queue" in plan.fresh
    assert not any("teacher" in part for part in plan.fresh)
    line = next(line for line in plan.lines() if line.startswith("model "))
    assert "; starts fresh: 3 weights of image_queue, " in line and "; starts as a copy: " in line
    assert _counts(["lm_head.bias"]) == ["1 weight of lm_head"]
    assert _is_copy("text_model.layers.1.second_cross_attention.query.weight") and not _is_copy("teacher_step")


def test_a_start_brings_no_steps_and_no_images_of_its_own_training(recipe, read, tmp_path):
    start = tiny_model("blip", "AutoModelForPreTraining", alpha_steps=10)
    start.teacher_step.fill_(999)
    start.image_queue.ids.fill_(3)
    start.save_pretrained(tmp_path / "start")
    recipe |= {"model": {"from": str(tmp_path / "start")}, "alpha_ramp": "epoch"}
    model = prepare(read(recipe)).model
    assert model.teacher_step.item() == 0 and (model.image_queue.ids == -100).all()
    assert torch.equal(model.image_queue.features, start.image_queue.features)


@pytest.mark.parametrize("changes", [{}, {"vision_config": {"image_size": 48}}], ids=["images as before", "resized"])
def test_a_queue_of_another_size_starts_fresh(recipe, read, tmp_path, changes):
    start = tiny_model("blip", "AutoModelForImageTextRetrieval")
    start.image_queue.features.fill_(3)
    start.save_pretrained(tmp_path / "start")
    recipe["model"] = {"from": str(tmp_path / "start"), "config": {"queue_size": 24, **changes}}
    plan = prepare(read(recipe))
    model, before = plan.model, weights(tmp_path / "start")
    assert len(model.image_queue) == len(model.text_queue) == model.config.queue_size == 24 != start.config.queue_size
    assert torch.allclose(model.image_queue.features.norm(dim=1), torch.ones(24))
    assert plan.fresh == ["image_queue of 24 features", "text_queue of 24 features"]
    for name, value in model.state_dict().items():
        assert "queue" in name or name.endswith("position_embedding") or torch.equal(value, before[name]), name
    recipe["training"] |= {"max_steps": 1}
    assert len(weights(plan.train())["text_queue.features"]) == 24


def test_images_of_another_size(recipe, read, processors, tmp_path):
    """Positions are interpolated, also the teacher's, and the processor makes images of that size."""
    tiny_model("blip", "AutoModelForImageTextRetrieval").save_pretrained(tmp_path / "start")
    recipe["model"] = {"from": str(tmp_path / "start"), "config": {"vision_config": {"image_size": 48}}}
    plan = prepare(read(recipe))
    assert plan.model.vision_model.position_embedding.shape[1] == 37
    assert plan.model.teacher_vision_model.position_embedding.shape[1] == 37
    assert plan.model.config.vision_config.image_size == plan.processor.image_processor.size["height"] == 48
    name = "text_model.embeddings.word.weight"
    assert torch.equal(plan.model.state_dict()[name], weights(tmp_path / "start")[name])


def test_alpha_and_its_ramp_reach_the_config(recipe, read):
    plan = prepare(read({**recipe, "alpha": 1, "alpha_ramp": "epoch"}))
    assert (plan.model.config.alpha, plan.model.config.alpha_steps, plan.epoch_steps) == (1.0, 2, 2)
    assert "teacher     momentum 0.995, alpha 1, from 0 over 2 steps" in plan.lines()
    recipe["training"]["gradient_accumulation_steps"] = 2
    assert prepare(read({**recipe, "alpha_ramp": 3})).model.config.alpha_steps == 3


def test_views_as_the_papers_draw_them(recipe, read, mistakes, processors, tmp_path):
    rows = prepare(read({**recipe, "augment": "rand_augment"})).train_rows
    state = torch.get_rng_state()
    first = [rows[0]["image"].tobytes() for _ in range(2)]
    assert rows[0]["image"].size == rows.view_size == (32, 32) and first[0] == first[1]
    rows.epoch = 1
    assert rows[0]["image"].tobytes() != first[0] and torch.equal(torch.get_rng_state(), state)
    recipe |= {"task": "contrastive", "processor": str(tmp_path / "clip"), "captions_per_image": 1}
    recipe["model"]["architecture"] = "clip"
    processor = AutoProcessor.from_pretrained(processors["clip"])
    processor.image_processor.size = {"shortest_edge": 32}
    processor.save_pretrained(tmp_path / "clip")
    found = mistakes({**recipe, "augment": "rand_augment"})
    assert found == ["augment: rand_augment draws views of one size, and the processor's sizes vary"]


def test_a_plan_writes_nothing(recipe, read):
    plan = prepare(read(recipe))
    assert isinstance(plan, Plan) and "batches     4 rows a step, 2 steps an epoch, 4 steps in all" in plan.lines()
    assert not Path(recipe["output"]).exists()


def change(recipe: dict, dotted: str, value) -> dict:
    *above, last = dotted.split(".")
    here = recipe
    for name in above:
        here = here.setdefault(name, {})
    here[last] = value
    return recipe


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("task", "retreival", "task: unknown task 'retreival'; did you mean 'retrieval'?"),
        ("model.architecture", "blpi", "model.architecture: unknown architecture 'blpi'; did you mean 'blip'?"),
        ("model.variant", "tinny", "model.variant: unknown variant 'tinny'; did you mean 'tiny'?"),
        ("model.config.queue", 3, "model.config.queue: is no field of BlipConfig; did you mean 'queue_size'?"),
        (
            "model.config.text_config.vocab",
            3,
            "text_config.vocab: is no field of BertTowerConfig; did you mean 'vocab_size'?",
        ),
        (
            "model.config.text_config",
            3,
            "model.config.text_config: must be a mapping of fields, got 3 (a whole number)",
        ),
        ("model.config.momentum", 2, "model.config: momentum must be between 0 and 1"),
        ("model.config.queue_size", 7, "model.config.queue_size: is 7, and must be at least the 8 pairs of a batch"),
        ("model.config.text_config.vocab_size", 60, "processor: {processor} has 64 words, the model has 60"),
        (
            "model.config.text_config.eos_token_id",
            9,
            "text_config.eos_token_id: is 9, but in the processor [SEP] is 3",
        ),
        ("processor", "./nowhere", "processor: ./nowhere: no such folder"),
        ("processor", "{data}", "processor: {data} holds no processor that can be read"),
        ("data.train.path", "nowhere.json", "data.train: nowhere.json: no such file or folder"),
        ("data.train.columns", {"captions": "text"}, "has no column 'text', it has image, captions, split"),
        (
            "training.learning_rat",
            1,
            "training.learning_rat: is no field of TrainingArguments; did you mean 'learning_rate'?",
        ),
        ("training.learning_rate", "fast", "training.learning_rate: must be a number, got 'fast' (text)"),
        ("training.max_steps", 2.5, "training.max_steps: must be a whole number, got 2.5 (a number)"),
        ("training.lr_scheduler_type", "cosin", "training: cosin is not a valid SchedulerType"),
        (
            "training.per_device_train_batch_size",
            0,
            "training.per_device_train_batch_size: must be at least 1, got 0",
        ),
        (
            "training.gradient_accumulation_steps",
            -1,
            "training.gradient_accumulation_steps: must be at least 1, got -1",
        ),
        ("training.output_dir", "x", "training.output_dir: is said by `output`"),
        ("training.remove_unused_columns", True, "training.remove_unused_columns: must be false: the columns"),
        ("training.dataloader_persistent_workers", True, "training.dataloader_persistent_workers: must be false"),
        ("max_length", 41, "max_length: must be at most the 40 positions of the model, got 41"),
        ("output", "{data}/photos.jsonl", "photos.jsonl is a file, not a folder"),
        ("output", "{data}/photos.jsonl/out", "photos.jsonl is no folder that may be written to"),
    ],
)
def test_a_mistake(recipe, mistakes, data, processors, key, value, message):
    names = {"data": data, "processor": processors["blip"]}
    value = value.format(**names) if isinstance(value, str) else value
    found = mistakes(change(recipe, key, value))
    assert len(found) == 1 and message.format(**names) in found[0]
    assert not (Path(recipe["output"]) / "recipe.yaml").exists()


def test_all_mistakes_are_told_together(recipe, mistakes):
    for key, value in (
        ("training.sed", 1),
        ("model.variant", "big"),
        ("data.train.path", "no.json"),
        ("data.evaluation.split", "no"),
    ):
        change(recipe, key, value)
    assert [line.split(":")[0] for line in mistakes(recipe)] == [
        "training.sed",
        "model.variant",
        "data.train",
        "data.evaluation",
    ]


def test_models_that_cannot_be_had(recipe, mistakes, data, tmp_path):
    photos = data / "photos.jsonl"
    for name, message in (("./nowhere", "no such folder"), (str(photos), "is a file, not a folder")):
        found = mistakes({**recipe, "model": {"from": name}})
        assert len(found) == 1 and found[0] == f"model.from: {name}: {message}" or message in found[0]
    assert mistakes({**recipe, "model": {"from": str(data)}})[0].startswith("model.from: ")
    for key in ("model.from", "processor"):
        changes = {"model": {"from": "runs/nowhere"}} if key == "model.from" else {"processor": "runs/nowhere"}
        found = mistakes({**recipe, **changes})
        assert len(found) == 1 and found[0].startswith(f"{key}: there is no folder runs/nowhere here, and it cannot ")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert (
        "bert is a bert, none of albef, align, blip"
        in mistakes({**recipe, "model": {"from": str(tmp_path / "bert")}})[0]
    )
    tiny_config("blip").save_pretrained(tmp_path / "empty")
    assert mistakes({**recipe, "model": {"from": str(tmp_path / "empty")}})[0].startswith("model: ")


def test_a_task_that_an_architecture_does_not_learn(recipe, mistakes, processors):
    recipe |= {"task": "captioning", "processor": processors["clip"]}
    recipe["model"]["architecture"] = "clip"
    expected = "task: CLIP has no head for captioning; it learns contrastive, and captioning is learned by BLIP"
    assert mistakes(recipe) == [expected]
    recipe["model"]["architecture"] = "moco"
    assert "MoCo has no head for pretraining; it learns no task" in mistakes({**recipe, "task": "pretraining"})[0]


def test_what_only_some_models_have(recipe, mistakes, processors):
    recipe |= {"task": "contrastive", "processor": processors["clip"], "alpha": 0.4}
    recipe["model"]["architecture"] = "clip"
    assert mistakes(recipe) == [
        "captions_per_image: must be 1 for contrastive, got 2",
        "alpha: is a momentum teacher's say, and this model has none for contrastive: leave it out",
    ]


def test_a_teacher_that_a_head_does_not_have(recipe, mistakes):
    """BLIP's captioner has none, and without a momentum no head has one."""
    expected = "is a momentum teacher's say, and this model has none for"
    assert mistakes({**recipe, "task": "captioning", "alpha": 0.4}) == [f"alpha: {expected} captioning: leave it out"]
    recipe["model"]["config"] = {"momentum": None}
    assert mistakes({**recipe, "alpha_ramp": 1}) == [f"alpha_ramp: {expected} retrieval: leave it out"]


@pytest.mark.parametrize("architecture", ["albef", "blip"])
@pytest.mark.parametrize("task", ["entailment", "visual-reasoning"])
def test_classes_of_images_and_texts(recipe, read, mistakes, data, processors, tmp_path, task, architecture):
    rows = [{"image": f"{i}.png", "image_second": f"{i + 1}.png", "text": "a dog", "label": i % 3} for i in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = {"path": str(tmp_path / "rows.json"), "images": str(data)}
    recipe |= {"task": task, "processor": processors[architecture], "data": {"train": source, "evaluation": source}}
    recipe |= {"samples": 2, "captions_per_image": 1}
    recipe["model"]["architecture"] = architecture
    unknown = "rows[2] has the label 2, this model has the classes 0 (LABEL_0), 1 (LABEL_1)"
    fix = "set model.config.num_labels: 3, or name as many classes in model.config.id2label"
    assert mistakes(recipe) == [f"data.{place}: {unknown}; {fix}" for place in ("train", "evaluation")]
    recipe["model"]["config"] = {"num_labels": 3}
    shown = []
    plan = prepare(read(recipe))
    before = plan.model.cls_head[0].weight.clone()
    folder = plan.train(shown.append)
    assert plan.model.classes == 3 and not torch.equal(weights(folder)["cls_head.0.weight"], before)
    assert len(shown) == 4 and "'LABEL_" in shown[0] and "(data: 'LABEL_0')" in shown[0]
    for label, message in ((-1, "column 'label' must hold the number of a class, "), ("yes", "has the label 'yes', ")):
        (tmp_path / "rows.json").write_text(json.dumps([{**rows[0], "label": label}, *rows[1:]]))
        assert message in mistakes({**recipe, "output": str(tmp_path / "another")})[0]


def test_classes_by_name(recipe, read, data, processors, tmp_path):
    """As a config names them; where they are called True and False, a row may say so as JSON does."""
    rows = [{"image": f"{i}.png", "text": "a dog", "label": name} for i, name in enumerate(("no", "maybe", "YES"))]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    recipe |= {"task": "entailment", "data": {"train": {"path": str(tmp_path / "rows.json"), "images": str(data)}}}
    recipe["model"]["config"] = {"id2label": {0: "no", 1: "maybe", 2: "yes"}}
    plan = prepare(read(recipe))
    assert [plan.train_rows[i]["label"] for i in range(3)] == [0, 1, 2]
    assert plan.model.classes == 3 and plan.model.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    (tmp_path / "rows.json").write_text(json.dumps([{**rows[0], "label": label} for label in (True, False, "true")]))
    recipe["model"]["config"] = {"id2label": {0: "False", 1: "True"}}
    rows = prepare(read(recipe)).train_rows
    assert [rows[i]["label"] for i in range(3)] == [1, 0, 1]


@pytest.mark.parametrize("architecture", ["albef", "blip"])
def test_questions_and_answers(recipe, read, mistakes, data, processors, tmp_path, architecture):
    """Of several people and of one; a question may be one of several about an image."""
    rows = [{"image": f"{i // 2}.png", "question": "a dog", "answers": ["red", "the cat", "red"]} for i in range(8)]
    source = {"path": str(tmp_path / "rows.json"), "images": str(data)}
    recipe |= {"task": "visual-question-answering", "processor": processors[architecture], "samples": 2}
    recipe |= {"data": {"train": source, "evaluation": source}, "captions_per_image": 1}
    recipe["model"]["architecture"] = architecture

    def write(*rows: dict) -> None:
        (tmp_path / "rows.json").write_text(json.dumps(rows))

    write(*rows)
    shown = []
    plan = prepare(read(recipe))
    before = plan.model.lm_head.dense.weight.clone()
    folder = plan.train(shown.append)
    assert not torch.equal(weights(folder)["lm_head.dense.weight"], before)
    assert len(shown) == 4 and shown[0].startswith("step 2: 0.png: ") and shown[0].endswith("(data: 'red')")
    answering = pipeline("visual-question-answering", str(folder))
    assert answering(str(data / "0.png"), question="a dog", candidates=["red", "cat"])[0]["answer"] in ("red", "cat")
    recipe |= {"output": str(tmp_path / "another")}
    for changes, message in (
        ({"answers": []}, "row 0, column 'answers' holds no text: leave such rows out"),
        ({"answers": ["red", " "]}, "row 0, column 'answers' holds an empty text among others: leave it out"),
        ({"answers": 3}, "row 0, column 'answers' must hold a text or a list of texts, got a whole number"),
        ({"question": " "}, "row 0, column 'question' holds no text: leave such rows out"),
        ({"image": None}, "row 0, column 'image' is empty"),
        ({"weight": 0}, "row 0, column 'weight' must hold a number above 0, got 0"),
    ):
        write({**rows[0], **changes}, *rows[1:])
        assert message in mistakes(recipe)[0]
    for name, message in (
        ("image", "has no column 'image', it has question, answers; say which"),
        ("question", "has no column 'question', it has image, answers; say which"),
        ("answers", "has no column 'answers' or 'answer', it has image, question; say which"),
    ):
        write({column: value for column, value in rows[0].items() if column != name})
        assert message in mistakes(recipe)[0]
    write(*({"image": row["image"], "question": "a dog", "answer": "red", "weight": 0.5} for row in rows))
    plan = prepare(read(recipe))
    batch = plan.task.collator(plan.processor, None)([plan.train_rows[0]])
    assert batch["answer_counts"].tolist() == [1] and batch["answer_weights"].tolist() == [0.5]


def test_answers_that_cannot_be_learned_are_counted(recipe, read, mistakes, data, processors, tmp_path):
    rows = [{"image": f"{i}.png", "question": "a dog", "answers": ["xylophone"]} for i in range(4)]
    source = {"path": str(tmp_path / "rows.json"), "images": str(data)}
    recipe |= {"task": "visual-question-answering", "data": {"train": source}, "captions_per_image": 1}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = mistakes(recipe)
    assert len(found) == 1 and found[0].startswith("data.train: none of the 4 rows has an answer that can be learned")
    rows[0]["answers"], rows[1]["answers"] = ["xylophone", "red"], ["red"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    plan = prepare(read(recipe))
    assert plan.unlearnable == 2
    assert any(line.startswith("answers     2 of 4 rows teach nothing") for line in plan.lines())


def test_what_bootstrap_writes_is_data(recipe, read, data, tmp_path):
    images = [str(data / f"{i}.png") for i in range(8)]
    shards = ShardFolder(tmp_path / "clean", {})
    shards.write(0, Kept(images, ["a red dog"] * 8, ["web"] * 8, [1.0] * 8, list(range(8))))
    recipe |= {"data": {"train": str(tmp_path / "clean")}, "captions_per_image": 1}
    recipe["training"] |= {"max_steps": 1}
    plan = prepare(read(recipe))
    assert len(plan.train_rows) == 8 and plan.train_rows[0]["captions"] == ["a red dog"]
    plan.train()


def test_classes_by_names_that_the_model_lacks(recipe, read, mistakes, data, tmp_path):
    """The line that is told is the line to write."""
    rows = [{"image": f"{i}.png", "text": "a dog", "label": i % 2 == 1} for i in range(4)]
    source = {"path": str(tmp_path / "rows.json"), "images": str(data)}
    recipe |= {"task": "entailment", "data": {"train": source}}
    for labels, line in (((True, False), '{0: "False", 1: "True"}'), (("yes", "a: b"), '{0: "a: b", 1: "yes"}')):
        (tmp_path / "rows.json").write_text(json.dumps([{**rows[i], "label": labels[i % 2]} for i in range(4)]))
        recipe["model"].pop("config", None)
        assert mistakes(recipe)[0].endswith(f"; set model.config.id2label: {line}")
        recipe["model"]["config"] = {"id2label": yaml.safe_load(line)}
        assert prepare(read(recipe)).train_rows[0]["label"] == 1
    (tmp_path / "rows.json").write_text(json.dumps([{**rows[0], "label": f"c{i:02}"} for i in range(30)]))
    assert mistakes(recipe)[0].endswith('19: "c19", ... and so on for all 30}')


def test_texts_are_assigned_to_images(recipe, read, mistakes, processors):
    recipe |= {"task": "text-assignment", "samples": 3}
    assert mistakes(recipe)[0].startswith("task: BLIP has no head for text-assignment; it learns captioning, ")
    recipe |= {"processor": processors["albef"]}
    recipe["model"]["architecture"] = "albef"
    shown = []
    plan = prepare(read(recipe))
    before = {name: getattr(plan.model, name).weight.clone() for name in ("ta_head", "vision_proj")}
    after = weights(plan.train(shown.append))
    assert not torch.equal(after["ta_head.weight"], before["ta_head"])
    assert torch.equal(after["vision_proj.weight"], before["vision_proj"])
    assert len(shown) == 6 and "(data: 'the first image')" in shown[0] and "(data: 'neither image')" in shown[2]
    assert "alpha: is a momentum teacher's say" in mistakes({**recipe, "alpha": 0.4, "output": "new"})[0]


def test_evaluation_needs_data(recipe, mistakes):
    recipe["training"]["eval_strategy"] = "epoch"
    del recipe["data"]["evaluation"]
    assert mistakes(recipe) == ["training.eval_strategy: is 'epoch', but data.evaluation is missing"]


def test_images_of_a_size_that_the_model_does_not_take(recipe, mistakes, processors, tmp_path):
    processor = AutoProcessor.from_pretrained(processors["blip"])
    processor.image_processor.size = {"height": 20, "width": 20}
    processor.save_pretrained(tmp_path / "small")
    found = mistakes({**recipe, "processor": str(tmp_path / "small")})
    assert len(found) == 1 and found[0].startswith("model: cannot read the first rows as the processor gives them: ")


def test_an_output_is_one_run(recipe, read, mistakes, processors):
    assert "holds no whole checkpoint to resume" in mistakes(recipe, resume=True)[0]
    recipe["training"] |= {"max_steps": 2, "lr_scheduler_type": "constant"}
    folder = prepare(read(recipe)).train()
    assert "holds a run already: pass --resume" in mistakes(recipe)[0]
    recipe["training"] |= {"max_steps": 3}
    assert mistakes({**recipe, "augment": False}, resume=True) == [
        f"augment: differs from what {recipe['output']} was started with: a resumed run goes on as it was"
    ]
    before = weights(folder)["itm_head.weight"]
    assert prepare(read(recipe), resume=True).train() == folder
    assert not torch.equal(weights(folder)["itm_head.weight"], before)
    assert {path.name for path in folder.parent.iterdir()} == {"checkpoint-2", "checkpoint-3", "model", "recipe.yaml"}


def test_a_finished_run_is_left_as_it_is(recipe, read, mistakes):
    recipe["training"] |= {"max_steps": 3, "save_steps": 1}  # ends within an epoch
    folder = prepare(read(recipe)).train()
    found = mistakes(recipe, resume=True)
    assert (
        len(found) == 1 and "holds a run that is already finished, 3 of 3 steps: raise training.max_steps" in found[0]
    )
    before = weights(folder)
    shutil.rmtree(folder)  # killed before it was saved
    after = weights(prepare(read(recipe), resume=True).train())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not (folder.parent / "checkpoint-4").exists()


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "learning_rate",
            1,
            "training.learning_rate: is 1, and {output} was started with 0.005: a resumed run goes on",
        ),
        ("weight_decay", 0.1, "training.weight_decay: is 0.1, and {output} was started with 0.0: a resumed run"),
        ("optim", "sgd", "training.optim: is sgd, and {output} was started with adamw_torch"),
    ],
)
def test_an_optimiser_goes_on_as_it_was(recipe, read, mistakes, name, value, message):
    output = Path(recipe["output"])
    (output / "checkpoint-1").mkdir(parents=True)
    (output / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    (output / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    recipe["training"] |= {"max_steps": 9, "logging_steps": 1}
    assert prepare(read(recipe), resume=True).checkpoint.name == "checkpoint-1"
    recipe["training"][name] = value
    found = mistakes(recipe, resume=True)
    assert len(found) == 1 and found[0].startswith(message.format(output=output))


def test_what_a_kill_left_of_a_model_is_removed_first(recipe, read):
    left = Path(recipe["output"]) / ".model-new"
    left.mkdir(parents=True)
    (left / "adapter_config.json").write_text("{")
    recipe["training"] |= {"max_steps": 1, "save_strategy": "no"}
    folder = prepare(read(recipe)).train()
    assert not (folder / "adapter_config.json").exists() and not left.exists()


def test_half_a_checkpoint_is_none(recipe, mistakes):
    state = Path(recipe["output"]) / "checkpoint-3" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"global_step": 3, "log_hist')
    assert "holds no whole checkpoint to resume" in mistakes(recipe, resume=True)[0]


def test_the_trained_captioner_captions(recipe, read, data):
    recipe |= {"task": "captioning"}
    recipe["training"] |= {"max_steps": 1, "save_strategy": "no"}
    folder = prepare(read(recipe)).train()
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert model.generate(**processor(images=[str(data / "0.png")]), max_new_tokens=3).shape[0] == 1
