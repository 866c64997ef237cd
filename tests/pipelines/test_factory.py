"""`hfvlm.pipeline`: transformers' signature, hfvlm's tasks, everything else passed on."""

import inspect
import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image
from tiny import tiny_model, tiny_processor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import hfvlm
import hfvlm.builtin
from hfvlm.pipelines import pipeline
from hfvlm.pipelines.dtype import choose_dtype
from hfvlm.pipelines.image_to_text import ImageToTextPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("hfvlm_blip", "AutoModelForImageTextToText").save_pretrained(folder)
    tiny_processor("hfvlm_blip").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    """A model that is none of ours."""
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def passed_on(monkeypatch) -> list[dict]:
    """Calls of `transformers.pipeline`, which does nothing."""
    calls = []
    monkeypatch.setattr("transformers.pipelines.pipeline", lambda **arguments: calls.append(arguments))
    return calls


IMAGE = Image.new("RGB", (40, 30), "green")


def test_signature_is_that_of_transformers():
    ours, theirs = inspect.signature(pipeline).parameters, inspect.signature(transformers.pipeline).parameters
    assert list(ours) == list(theirs)
    for name in ours:
        assert (ours[name].kind, ours[name].default) == (theirs[name].kind, theirs[name].default), name
    assert hfvlm.pipeline is pipeline


def test_import_is_light():
    code = "import sys, hfvlm.pipelines; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_folder(folder):
    pipe = pipeline("image-to-text", folder, device="cpu")
    assert isinstance(pipe, ImageToTextPipeline)
    assert pipe.task == "image-to-text"
    assert pipe.dtype == torch.float32
    assert pipe(IMAGE)[0]["generated_text"]


def test_task_is_inferred_from_the_architecture(folder):
    assert isinstance(pipeline(model=folder), ImageToTextPipeline)


def test_a_head_with_several_tasks_wants_one_named(tmp_path):
    model, processor = tiny_model("blip", "AutoModelForImageTextRetrieval"), tiny_processor("blip")
    with pytest.raises(ValueError, match="several tasks, name one: image-text-matching, image-text-retrieval"):
        pipeline(model=model, processor=processor)


def test_builtin_model_is_the_default(folder, monkeypatch):
    monkeypatch.setattr(hfvlm.builtin, "builtin_model", lambda task: {"image-to-text": folder}[task])
    assert pipeline("image-to-text", device="cpu")(IMAGE) == pipeline("image-to-text", folder, device="cpu")(IMAGE)


def test_builtin_model_serves_a_task_of_transformers():
    rows = pipeline("zero-shot-image-classification", device="cpu")(IMAGE, candidate_labels=["a dog", "a cat"])
    assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-3)


def test_model_and_processor_objects(folder):
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    pipe = pipeline("image-to-text", model, processor=processor, device="cpu")
    assert pipe.model is model
    assert pipe.processor is processor
    assert pipe(IMAGE) == pipeline("image-to-text", folder, device="cpu")(IMAGE)
    assert pipeline("image-to-text", model, processor=folder).processor.tokenizer.get_vocab()
    with pytest.raises(ValueError, match="needs processor="):
        pipeline("image-to-text", model)


def test_options_reach_their_place(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    pipe = pipeline(
        "image-to-text",
        folder,
        config=config,
        device=torch.device("cpu"),
        dtype="bfloat16",
        batch_size=3,
        max_new_tokens=2,
        model_kwargs={"attn_implementation": "eager", "cache_dir": str(tmp_path)},
    )
    assert pipe.dtype == torch.bfloat16
    assert pipe._batch_size == 3
    assert pipe.model.config._attn_implementation == "eager"
    assert len(pipe(IMAGE)[0]["generated_text"].split()) <= 2
    assert pipeline("image-to-text", folder, torch_dtype=torch.float16, device="cpu").dtype == torch.float16

    class Mine(ImageToTextPipeline):
        pass

    assert isinstance(pipeline("image-to-text", folder, config=folder, pipeline_class=Mine), Mine)


def test_a_model_that_lacks_weights_is_refused(tmp_path):
    tiny_model("hfvlm_clip", "AutoModelForImageClassification").save_pretrained(tmp_path)
    tiny_processor("hfvlm_clip").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 31 weights of ClipModel \(in .*ClipForImageClassification"):
        pipeline("image-text-retrieval", str(tmp_path))


@pytest.mark.parametrize("given", [None, False, True])
def test_trust_is_never_forced(folder, given, monkeypatch):
    seen = []
    for auto in (AutoModelForImageTextToText, AutoProcessor):
        original = auto.from_pretrained

        def spy(*args, _original=original, **kwargs):
            seen.append(kwargs.pop("trust_remote_code", None))
            return _original(*args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", spy)
    pipeline("image-to-text", folder, trust_remote_code=given)
    assert seen == [given, given]


def test_other_tasks_are_passed_on_unchanged(passed_on):
    given = {"task": "text-classification", "model": "some/model", "device": "cpu", "batch_size": 4, "top_k": 2}
    pipeline(**given)
    [arguments] = passed_on
    defaults = {name: parameter.default for name, parameter in inspect.signature(pipeline).parameters.items()}
    defaults.pop("kwargs")
    assert arguments == {**defaults, **given}


def test_other_tasks_work(vit):
    assert len(pipeline("image-classification", vit, device="cpu")(IMAGE)) == 2


def test_folders_that_bring_their_own_pipeline_are_passed_on(vit, passed_on, tmp_path):
    config = AutoConfig.from_pretrained(vit)
    config.custom_pipelines = {"image-to-text": {"impl": "code.Pipe", "pt": ["AutoModel"]}}
    config.save_pretrained(tmp_path)
    pipeline("image-to-text", str(tmp_path), trust_remote_code=True)
    assert passed_on[0]["model"] == str(tmp_path)


@pytest.mark.parametrize(("task", "near"), [("image-to-txt", "image-to-text"), ("text-clasification", "text-class")])
def test_unknown_task_names_the_nearest(folder, task, near):
    with pytest.raises(ValueError, match=f"{task}.*did you mean '{near}"):
        pipeline(task, folder)


def test_architecture_without_the_task(vit):
    with pytest.raises(ValueError, match="'vit' has no pipeline 'image-to-text'.*no architecture of hfvlm.*BLIP"):
        pipeline("image-to-text", vit)


@pytest.mark.parametrize("name", ["./nofolder", "nonsense/none"])
def test_a_model_that_is_nowhere_is_named(name):
    with pytest.raises(OSError, match=f"model '{name}' is no folder here"):
        hfvlm.pipeline("image-to-text", model=name)


def test_folder_without_a_config(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        pipeline("image-to-text", str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer", "image_processor", "feature_extractor", "video_processor"])
def test_parts_of_the_processor_are_refused(folder, name):
    with pytest.raises(ValueError, match=f"processor=.*{name}="):
        pipeline("image-to-text", folder, **{name: folder})


def test_nothing_named():
    with pytest.raises(RuntimeError, match="without either a task or a model"):
        pipeline()


def test_builtin_model_is_found_or_missed_clearly(monkeypatch, tmp_path):
    monkeypatch.setattr(hfvlm.builtin, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="no built-in model for 'image-to-text'.*missing"):
        hfvlm.builtin.builtin_model("image-to-text")
    folder = tmp_path / "assets" / "blip"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert hfvlm.builtin.builtin_model("image-to-text") == folder
    with pytest.raises(ValueError, match="no built-in model for 'text-to-image', only for image-to-text"):
        hfvlm.builtin.builtin_model("text-to-image")


def test_choose_dtype(monkeypatch):
    assert choose_dtype("cpu", "fp32") == torch.float32
    assert choose_dtype("cpu", "bf16") == torch.bfloat16
    for able, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert choose_dtype("cpu") == expected
    for able, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert choose_dtype("cuda") == expected
    assert choose_dtype("mps") == torch.float32
