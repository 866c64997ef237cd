"""LAVIS's names and calls give what their heads give; a LAVIS script runs with one import changed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from torch.nn.functional import normalize

import hfvlm
from hfvlm.builtin import builtin_model
from hfvlm.conversion.blip_processor import in_tree_processor
from hfvlm.conversion.convert_blip import to_transformers
from hfvlm.data.augment import OPERATIONS, augmented, training_view
from hfvlm.lavis.processors import CleanQuestion, CleanText
from hfvlm.lavis.table import MODELS


TEXTS = ["a dog on the grass", "two cats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny model that one of LAVIS's names can be loaded from."""
    made = {}

    def make(name: str) -> str:
        entry = MODELS[name]
        key = (entry.architecture, entry.auto)
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp(name))
            tiny_model(*key).save_pretrained(made[key])
            tiny_processor(entry.architecture).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture
def opened(folder, photos):
    """A model of LAVIS's and samples for it, by name."""

    def make(name: str, model_type: str, **options):
        model, vis, txt = hfvlm.load_model_and_preprocess(name, model_type, checkpoint=folder(name), **options)
        image = torch.stack([vis["eval"](photo) for photo in photos])
        return model, {"image": image, "text_input": [txt["eval"](text) for text in TEXTS]}

    return make


SCRIPT = """
import torch
from hfvlm import load_model_and_preprocess

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model, vis_processors, txt_processors = load_model_and_preprocess(
    name="NAME", model_type="TYPE", is_eval=True, device=device
)
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
"""
CAPTIONS = """
captions = model.generate({"image": image})
drawn = model.generate({"image": image}, use_nucleus_sampling=True, num_captions=3)
"""
FEATURES = """
sample = {"image": image, "text_input": [txt_processors["eval"]("A dog, on the grass!")]}
multimodal = model.extract_features(sample)
features_image = model.extract_features(sample, mode="image")
features_text = model.extract_features(sample, mode="text")
similarity = features_image.image_embeds_proj[:, 0, :] @ features_text.text_embeds_proj[:, 0, :].t()
"""
MATCHING = """
text = txt_processors["eval"]("A dog, on the grass!")
itm = torch.nn.functional.softmax(model({"image": image, "text_input": text}, match_head="itm"), dim=1)[:, 1]
itc = model({"image": image, "text_input": text}, match_head="itc")
"""


@pytest.fixture
def script(folder, photos, monkeypatch):
    """Runs a LAVIS script whose weights lie in a folder, and returns its names."""

    def run(name: str, model_type: str, code: str) -> dict:
        monkeypatch.setitem(MODELS[name].types, model_type, folder(name))
        names = {"raw_image": photos[0]}
        exec(SCRIPT.replace("NAME", name).replace("TYPE", model_type) + code, names)
        return names

    return run


def test_a_captioning_script(script):
    names = script("blip_caption", "base_coco", CAPTIONS)
    assert len(names["captions"]) == 1 and len(names["drawn"]) == 3
    assert all(isinstance(text, str) for text in names["captions"] + names["drawn"])
    assert not names["model"].training


@pytest.mark.parametrize("name", ["blip_feature_extractor", "albef_feature_extractor"])
def test_a_feature_script(script, name):
    names = script(name, "base", FEATURES)
    assert names["similarity"].shape == (1, 1) and abs(names["similarity"].item()) <= 1
    length = len(names["model"].tokenizer("a dog, on the grass ")["input_ids"])
    assert names["multimodal"].multimodal_embeds.shape[:2] == (1, length)


def test_a_matching_script(script):
    names = script("blip_image_text_matching", "large", MATCHING)
    assert 0 <= names["itm"].item() <= 1 and names["itc"].shape == (1, 1)


def test_captions_are_the_heads_own_without_the_prompt(opened):
    model, samples = opened("blip_caption", "large_coco")
    found = model.generate(samples, num_beams=2, max_length=14, min_length=6, repetition_penalty=1.2, num_captions=2)
    inputs = model.processor(text=["a picture of"] * 2)
    ids = model.head.generate(
        pixel_values=samples["image"], **inputs, num_beams=2, max_length=14, min_length=6, repetition_penalty=1.2
    )
    texts = [text.removeprefix("a picture of ") for text in model.processor.batch_decode(ids)]
    assert found == [texts[0], texts[0], texts[1], texts[1]]
    assert ids.shape[1] <= 14 and model.head.config.release_beam_search
    torch.manual_seed(0)
    drawn = model.generate(samples, use_nucleus_sampling=True, top_p=0.95, num_captions=3)
    assert len(drawn) == 6 and len(set(drawn[:3])) > 1


def test_a_captioners_loss_is_of_what_follows_the_prompt(opened, folder):
    model, samples = opened("blip_caption", "base_coco")
    train = hfvlm.load_model_and_preprocess("blip_caption", "base_coco", checkpoint=folder("blip_caption"))[2]["train"]
    outputs = model({**samples, "text_input": [train(text) for text in TEXTS]})
    expected = model.head(pixel_values=samples["image"], **model.processor(text=["a picture of"] * 2, suffix=TEXTS))
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(outputs.loss_lm, expected.loss)


@pytest.mark.parametrize("name", ["blip_feature_extractor", "albef_feature_extractor"])
def test_features_are_the_heads(opened, name):
    model, samples = opened(name, "base", is_eval=True)
    alone = name.startswith("blip")
    texts = model.texts(samples)
    assert texts["input_ids"][:, 0].tolist() == [model.tokenizer.cls_token_id] * 2
    assert texts["input_ids"][0, -1] == model.tokenizer.sep_token_id
    image, text = (model.extract_features(samples, mode=mode) for mode in ("image", "text"))
    both = model.extract_features(samples)
    assert set(image) == {"image_embeds", "image_embeds_proj"} and set(text) == {"text_embeds", "text_embeds_proj"}
    assert set(both) == {"image_embeds", "multimodal_embeds"} | (set() if alone else set(image) | set(text))
    head = model.head
    with torch.no_grad():
        tokens = head.get_image_features(samples["image"]).last_hidden_state
        torch.testing.assert_close(both.multimodal_embeds, head.fuse(tokens, **texts).last_hidden_state)
        torch.testing.assert_close(image.image_embeds_proj, normalize(head.vision_proj(tokens), dim=-1))
    assert not both.multimodal_embeds.requires_grad
    assert set(model.extract_features(samples, mode=["image", "text"])) == set(image) | set(text)
    assert set(model.extract_features({"text_input": "a dog"}, mode="text")) == set(text)


def test_an_image_without_a_class_token_has_its_vector_first(photos):
    """The built-in model's tower has none."""
    folder = str(builtin_model("image-text-matching"))
    model, vis, _ = hfvlm.load_model_and_preprocess("blip_feature_extractor", "base", checkpoint=folder)
    samples = {"image": torch.stack([vis["eval"](photo) for photo in photos]), "text_input": TEXTS}
    image, text = (model.extract_features(samples, mode=mode) for mode in ("image", "text"))
    assert image.image_embeds.shape[1] == image.image_embeds_proj.shape[1] == 50
    matcher = hfvlm.load_model("blip_image_text_matching", "base", checkpoint=folder)
    expected = matcher(samples, match_head="itc")
    torch.testing.assert_close(image.image_embeds_proj[:, 0] @ text.text_embeds_proj[:, 0].t(), expected)
    captioner = hfvlm.load_model("blip_caption", "base_coco", checkpoint=folder)
    captions = captioner.generate(samples, max_length=7, min_length=5)
    assert all(len(caption.split()) <= 7 for caption in captions)


def test_matching_is_the_heads(opened):
    model, samples = opened("blip_image_text_matching", "base")
    outputs = model.head(pixel_values=samples["image"], return_loss=False, **model.texts(samples))
    torch.testing.assert_close(model(samples, match_head="itm"), outputs.itm_logits)
    torch.testing.assert_close(model(samples, match_head="itc"), outputs.image_embeds @ outputs.text_embeds.t())
    torch.testing.assert_close(model(samples), outputs.itm_logits)
    assert model.texts({"text_input": "a dog " * 40})["input_ids"].shape[1] == 35


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval"])
def test_retrieval_learns_with_a_growing_alpha(opened, name):
    model, samples = opened(name, "coco", is_eval=False)
    assert model.training and model.head.training
    model.eval()
    ids = torch.tensor([3, 3])
    step = {"image_id": ids, "epoch": 1, "iters": 5, "num_iters_per_epoch": 10}
    inputs = {"pixel_values": samples["image"], **model.texts(samples), "return_loss": True}
    for more, alpha in ((step, 0.75), ({**step, "epoch": 7}, 1.0), ({"image_id": ids}, 0.0)):
        expected = model.head(**inputs, image_ids=ids, alpha=alpha * model.head.config.alpha)
        found = model({**samples, **more})
        for part in ("loss", "loss_itc", "loss_itm"):
            torch.testing.assert_close(found[part], expected[part])
    assert model(samples, match_head="itm").shape == (2, 2)
    model.train()({**samples, "image_id": torch.tensor([0, 1])}).loss.backward()


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval"])
def test_the_nearest_are_judged_as_lavis_does(opened, photos, name):
    model, samples = opened(name, "coco")

    class Photos(torch.utils.data.Dataset):
        text = [*TEXTS, "a red ball", "a big dog sits"]

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": samples["image"][index], "index": index}

    loader = torch.utils.data.DataLoader(Photos(), batch_size=1)
    of_images, of_texts = model.compute_sim_matrix(loader, SimpleNamespace(k_test=2))
    assert of_images.shape == (2, 4) and of_texts.shape == (4, 2) and isinstance(of_images, np.ndarray)
    everything = {"image": samples["image"], "text_input": Photos.text}
    similarity = model(everything, match_head="itc")
    for image in range(2):
        one = {"image": samples["image"][image : image + 1].repeat(4, 1, 1, 1), "text_input": Photos.text}
        expected = model(one, match_head="itm")[:, 1] + similarity[image]
        near = similarity[image].topk(2).indices
        assert sorted(np.flatnonzero(of_images[image] != -100)) == sorted(near.tolist())
        torch.testing.assert_close(torch.from_numpy(of_images[image])[near], expected[near], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(of_texts[:, image]), expected, rtol=1e-4, atol=1e-5)


ANSWERS = ["red", "two cats", "a dog on the grass", "blue"]


@pytest.mark.parametrize("name", ["blip_vqa", "albef_vqa"])
def test_answers_are_the_heads(opened, name):
    model, samples = opened(name, "vqav2")
    inputs = {"pixel_values": samples["image"], **model.texts(samples)}
    ids = model.head.generate(**inputs, num_beams=2, max_length=6, min_length=3)
    found = model.predict_answers(samples, inference_method="generate", num_beams=2, max_len=6, min_len=3)
    assert found == model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert model.head.config.answers_read_padding == name.startswith("blip")
    words = [model.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS]
    text = model.head.config.text_config
    rows = [torch.tensor([text.bos_token_id, *ids, text.eos_token_id]) for ids in words]
    likely = torch.zeros(2, len(rows))
    for i, row in enumerate(rows):
        logits = model.head(**inputs, labels=row.expand(2, -1)).logits[:, :-1].log_softmax(-1)
        likely[:, i] = logits.gather(-1, row[1:].expand(2, -1)[..., None])[..., 0].sum(-1)
    assert model.predict_answers(samples, answer_list=ANSWERS) == [ANSWERS[i] for i in likely.argmax(1).tolist()]
    assert len(model.predict_answers({**samples, "text_input": TEXTS}, answer_list=ANSWERS, num_ans_candidates=1)) == 2


@pytest.mark.parametrize("name", ["blip_vqa", "albef_vqa"])
def test_answers_are_learned_with_their_weights(opened, name):
    model, samples = opened(name, "vqav2")
    learned = {"answer": ["red", "two cats", "blue"], "n_answers": [2, 1], "weight": torch.tensor([0.5, 0.5, 1.0])}
    step = {"epoch": 0, "iters": 5, "num_iters_per_epoch": 10}
    tokens = model._answers(learned["answer"])
    expected = model.head(
        pixel_values=samples["image"],
        **model.texts(samples),
        labels=tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100),
        answer_counts=torch.tensor([2, 1]),
        answer_weights=learned["weight"],
        **({} if name.startswith("blip") else {"alpha": 0.5 * model.head.config.alpha}),
    )
    torch.testing.assert_close(model({**samples, **learned, **step}).loss, expected.loss)
    model.train()({**samples, **learned, **step}).loss.backward()


@pytest.mark.parametrize(
    ("name", "model_type"), [("blip_nlvr", "nlvr"), ("albef_nlvr", "nlvr"), ("albef_classification", "ve")]
)
def test_classes_are_the_heads(opened, name, model_type):
    model, samples = opened(name, model_type)
    inputs = {"pixel_values": samples["image"], **model.texts(samples)}
    if name.endswith("nlvr"):
        inputs["pixel_values_second"] = samples["image"].flip(0)
        samples |= {"image0": samples["image"], "image1": samples.pop("image").flip(0)}
    samples["label"] = torch.tensor([1, 0])
    found = model.predict(samples)
    torch.testing.assert_close(found["predictions"], model.head(**inputs).logits)
    assert found["targets"] is samples["label"] and not found["predictions"].requires_grad
    assert torch.equal(model(samples, is_train=False)["predictions"], found["predictions"])
    growing = {} if name.startswith("blip") else {"alpha": model.head.config.alpha * (0.25 if "nlvr" in name else 0.5)}
    step = {"epoch": 0, "iters": 5, "num_iters_per_epoch": 10}
    expected = model.head(**inputs, labels=samples["label"], **growing)
    torch.testing.assert_close(model({**samples, **step}).loss, expected.loss)
    model.train()({**samples, **step}).loss.backward()


def test_a_question_keeps_its_mark_and_what_cannot_be_answered_is_named(opened):
    model, samples = opened("blip_vqa", "okvqa")
    assert CleanQuestion()('What  COLOR: is the "dog" (left)?  ') == "what  color is the dog left?"
    assert CleanQuestion()(" ".join(["word"] * 60)).count("word") == 50
    for call, message in (
        (lambda: model.predict_answers(samples), "needs answer_list"),
        (
            lambda: model.predict_answers(samples, inference_method="guess"),
            "must be 'rank' or 'generate', got 'guess'",
        ),
        (lambda: model.predict_answers({**samples, "text_input": "a"}, answer_list=["a"]), "2 images and 1 questions"),
        (lambda: model(samples), "samples need 'answer'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    model, samples = opened("blip_nlvr", "nlvr")
    with pytest.raises(ValueError, match="samples need 'image0', these have image, text_input"):
        model.predict(samples)
    wrong = {**samples, "image0": samples["image"], "image1": samples["image"][0]}
    with pytest.raises(ValueError, match=r"samples\['image1'\] must be \[images, channels, h, w\]"):
        model.predict(wrong)


def test_clip_features(opened):
    model, samples = opened("clip_feature_extractor", "base")
    outputs = model.head(pixel_values=samples["image"], **model.texts(samples))
    found = model.extract_features(samples)
    assert set(found) == {"image_embeds", "image_embeds_proj", "text_embeds", "text_embeds_proj"}
    torch.testing.assert_close(found.image_embeds_proj, outputs.image_embeds)
    torch.testing.assert_close(found.text_embeds_proj, outputs.text_embeds)
    for name, field in (("image", "image_embeds"), ("text_input", "text_embeds")):
        torch.testing.assert_close(model.extract_features({name: samples[name]}), found[field])
    assert model(samples).loss.ndim == 0


def test_what_transformers_saved_is_read(folder, photos, tmp_path):
    for name, model_type in (("blip_caption", "base_coco"), ("blip_image_text_matching", "base")):
        ours = hfvlm.load_model(name, model_type, checkpoint=folder(name))
        to_transformers(ours.head).save_pretrained(tmp_path / name)
        in_tree_processor(ours.processor).save_pretrained(tmp_path / name)
        theirs, vis, _ = hfvlm.load_model_and_preprocess(name, model_type, checkpoint=tmp_path / name)
        samples = {"image": vis["eval"](photos[0])[None], "text_input": "a dog"}
        if name == "blip_caption":
            assert theirs.generate(samples) == ours.generate(samples)
        else:
            torch.testing.assert_close(theirs(samples), ours(samples))
    with pytest.raises(ValueError, match="needs a BlipForImageTextRetrieval, .* is a BlipForConditionalGeneration"):
        hfvlm.load_model("blip_retrieval", "coco", checkpoint=tmp_path / "blip_caption")
    theirs = to_transformers(tiny_model("blip", "AutoModelForImageTextToText"))
    theirs.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="bare has no tokenizer"):
        hfvlm.load_model("blip_caption", "base_coco", checkpoint=tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "blip", "architectures": ["Blop"]}')
    with pytest.raises(ValueError, match="is of Blop, which transformers does not have"):
        hfvlm.load_model("blip_caption", "base_coco", checkpoint=tmp_path / "bare")


def test_what_transformers_saved_of_clip_is_read(photos, tmp_path):
    from two_towers import save_stock_clip, stock_clip

    source = save_stock_clip(tmp_path)
    model, vis, txt = hfvlm.load_model_and_preprocess("clip_feature_extractor", "ViT-B-32", checkpoint=source)
    pixels = vis["eval"](photos[0])[None]
    with torch.no_grad():
        found = model.extract_features({"image": pixels})
        torch.testing.assert_close(found, stock_clip().get_image_features(pixels).pooler_output)
    assert txt["eval"]("A Dog!") == "A Dog!" and txt["train"] is vis["train"]


def test_processors(folder, photos):
    _, vis, txt = hfvlm.load_model_and_preprocess("blip_caption", "base_coco", checkpoint=folder("blip_caption"))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    squashed = np.asarray(photos[0].resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = torch.tensor((squashed - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(vis["eval"](photos[0]), expected, rtol=1e-5, atol=1e-5)
    views = [vis["train"](photos[0]) for _ in range(4)]
    assert all(view.shape == (3, 32, 32) for view in views)
    assert any(not torch.equal(views[0], view) for view in views[1:])
    assert txt["eval"]('A  dog:\n"on" the (grass). ') == "a dog on the grass"
    assert txt["train"]("A dog.") == "a picture of a dog"
    assert CleanText()(" ".join(["word"] * 60)).count("word") == 50
    vis, txt = hfvlm.load_model_and_preprocess(
        "blip_image_text_matching", "base", checkpoint=folder("blip_retrieval")
    )[1:]
    assert vis["train"](photos[0]) is photos[0] and txt["train"]("A dog.") == "A dog."


def test_augmentation_keeps_the_image_an_image(photos):
    for name, operation in OPERATIONS.items():
        changed = operation(photos[0])
        assert (changed.size, changed.mode) == (photos[0].size, "RGB"), name
    torch.manual_seed(0)
    views = [np.asarray(training_view(photos[0], (20, 24))) for _ in range(30)]
    assert all(view.shape == (24, 20, 3) for view in views)
    assert len({view.tobytes() for view in views}) == 30
    same = sum(augmented(photos[0]).tobytes() == photos[0].tobytes() for _ in range(200))
    assert 200 * 0.25 < same < 200 * 0.75  # both not done, or done to no effect: (1/2 + 1/2 * 3/10) ** 2 = 0.42


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("blip_captions", "base_coco"), ValueError, "unknown model 'blip_captions'; did you mean 'blip_caption'"),
        (("zzz", "base"), ValueError, r"unknown model 'zzz'\. Known: blip_caption, "),
        (("blip_caption", "coco"), ValueError, "blip_caption has no model_type 'coco'; did you mean 'base_coco'"),
        (
            ("albef_retrieval", "coco"),
            ValueError,
            "download https.*albef_coco_retrieval_lavis.pt, convert it .*albef.py",
        ),
        (("blip_caption", "base_coco", True, "cpu", "/no/folder"), OSError, "'/no/folder' is no folder here"),
    ],
)
def test_names_that_lead_nowhere(arguments, error, message):
    with pytest.raises(error, match=message):
        hfvlm.load_model(*arguments)


def test_wrong_checkpoints_and_samples_are_named(opened, folder):
    with pytest.raises(ValueError, match="needs a checkpoint of ALBEF, .* has model_type 'hfvlm_blip'"):
        hfvlm.load_model("albef_retrieval", "coco", checkpoint=folder("blip_retrieval"))
    with pytest.raises(ValueError, match="lacks .* weights of BlipForImageTextRetrieval"):
        hfvlm.load_model("blip_retrieval", "coco", checkpoint=folder("blip_caption"))
    model, samples = opened("blip_image_text_matching", "base")
    for given, message in (
        ({"image": samples["image"]}, "samples need 'text_input', these have image"),
        ({}, "samples need .*, these have nothing"),
        ({**samples, "image": samples["image"][0]}, r"must be \[images, channels, h, w\], got \[3, 32, 32\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(given)
    with pytest.raises(ValueError, match="match_head must be 'itm' or 'itc', got 'it'"):
        model(samples, match_head="it")
