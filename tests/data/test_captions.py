"""Reading captions, drawing views and captions of an item, and the batch that is made of them."""

import json

import pytest
import torch
from PIL import ExifTags, Image
from tiny import tiny_model, tiny_processor
from transformers import Trainer, TrainingArguments

from hfvlm.data.captions import (
    CaptionCollator,
    CaptionedImages,
    GroupedPairCollator,
    PairCollator,
    draw_captions,
    random_view,
    read_captions,
    seeded,
)


@pytest.fixture
def folder(tmp_path):
    """Three images of one colour each, two to train on."""
    rows = []
    for i, (colour, split) in enumerate([("red", "train"), ("blue", "train"), ("green", "test")]):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{i}.png")
        captions = [f"a {colour} picture", f"{colour} water", "the zebra"]
        rows.append({"image": f"{i}.png", "captions": captions, "split": split})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_rows_of_a_split_with_their_paths_resolved(folder):
    rows = read_captions(folder / "captions.jsonl", "train")
    assert [row["image"] for row in rows] == [folder / "0.png", folder / "1.png"]
    assert rows[0]["captions"] == ["a red picture", "red water", "the zebra"]
    assert len(read_captions(str(folder / "captions.jsonl"))) == 3


def test_a_missing_split_names_those_that_are_there(folder):
    with pytest.raises(ValueError, match="has no row of split 'val'; it has test, train"):
        read_captions(folder / "captions.jsonl", "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "is no JSON"),
        ('{"image": "0.png"}', "has no 'captions' that is a list of strings; it has image"),
        ('{"image": "0.png", "captions": "a dog"}', "has no 'captions' that is a list of strings"),
        ("[]", "must be an object of columns, got list"),
        ('{"image": 3, "captions": []}', "has no 'image' that is a string; it has image, captions"),
    ],
)
def test_a_broken_line_is_named(folder, line, message):
    path = folder / "captions.jsonl"
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"captions.jsonl:5: {message}"):
        read_captions(path)


def test_items_hold_an_rgb_image_and_captions(folder):
    rows = read_captions(folder / "captions.jsonl")
    Image.new("L", (8, 8)).save(folder / "0.png")
    everything = CaptionedImages(rows)
    assert len(everything) == 3
    assert everything[0]["image"].mode == "RGB"
    assert everything[0]["captions"] == rows[0]["captions"]
    torch.manual_seed(0)
    two = CaptionedImages(rows, captions_per_image=2)
    drawn = [tuple(two[0]["captions"]) for _ in range(20)]
    assert all(len(set(captions)) == 2 for captions in drawn)
    assert len(set(drawn)) > 2


def test_images_are_upright_and_laid_on_white_as_the_pipelines_see_them(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(folder / "0.jpg", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "1.png")
    rows = [{"image": folder / name, "captions": ["a dog"]} for name in ("0.jpg", "1.png")]
    turned, clear = CaptionedImages(rows)
    assert turned["image"].size == (30, 40)
    assert clear["image"].getpixel((0, 0)) == (255, 255, 255)


def uneven(folder, *counts: int) -> list[dict]:
    return [
        {"image": folder / f"{i}.png", "captions": [f"word{j}" for j in range(count)]}
        for i, count in enumerate(counts)
    ]


def test_images_with_fewer_captions_repeat_some(folder):
    dataset = CaptionedImages(uneven(folder, 5, 2), captions_per_image=4)
    assert len(set(dataset[0]["captions"])) == 4
    assert len(dataset[1]["captions"]) == 4 and set(dataset[1]["captions"]) == {"word0", "word1"}
    assert len(CaptionCollator(tiny_processor("blip"))([dataset[0], dataset[1]])["input_ids"]) == 8


def test_uneven_captions_are_refused_before_a_batch_is_made_of_them(folder):
    with pytest.raises(ValueError, match="have 5 to 7 captions.*pass captions_per_image=5"):
        CaptionedImages(uneven(folder, 5, 7))
    for wanted in (None, 2):
        with pytest.raises(ValueError, match="rows hold images without captions"):
            CaptionedImages(uneven(folder, 5, 0), captions_per_image=wanted)


def test_views_are_crops_of_at_least_the_area_asked_for():
    picture = Image.linear_gradient("L").resize((200, 100))
    generator = torch.Generator().manual_seed(0)
    mirrored = set()
    for _ in range(50):
        view = random_view(picture, generator, min_scale=0.5)
        width, height = view.size
        assert 0.7 * 200 - 2 <= width <= 200 and 0.7 * 100 - 2 <= height <= 100
        mirrored.add(view.size)
    assert len(mirrored) > 10
    again = [random_view(picture, torch.Generator().manual_seed(5)).tobytes() for _ in range(2)]
    assert again[0] == again[1]


def test_half_of_the_views_are_mirrored():
    picture = Image.new("L", (64, 64), 0)
    picture.paste(255, (32, 0, 64, 64))
    generator = torch.Generator().manual_seed(0)
    views = [random_view(picture, generator) for _ in range(60)]
    bright_left = sum(view.getpixel((0, 5)) == 255 for view in views)
    assert 15 < bright_left < 45


def test_augmentation_is_for_those_who_ask(folder):
    rows = read_captions(folder / "captions.jsonl")
    torch.manual_seed(0)
    assert {CaptionedImages(rows)[0]["image"].size for _ in range(5)} == {(40, 30)}
    assert len({CaptionedImages(rows, augment=True)[0]["image"].size for _ in range(20)}) > 3


def test_a_batch_holds_each_image_once_and_its_captions_together(folder):
    processor = tiny_processor("blip")
    dataset = CaptionedImages(read_captions(folder / "captions.jsonl", "train"))
    batch = CaptionCollator(processor, max_length=8)([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert processor.batch_decode(batch["input_ids"])[:2] == ["a red picture", "red water"]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert len(batch["input_ids"]) == 6


def test_unknown_words_are_read_but_not_learned(folder):
    processor = tiny_processor("blip")
    item = {"image": Image.new("RGB", (9, 9)), "captions": ["the zebra runs"]}
    batch = CaptionCollator(processor)([item])
    unknown = batch["input_ids"] == processor.tokenizer.unk_token_id
    assert unknown.sum() == 1
    assert (batch["labels"][unknown] == -100).all()
    assert (batch["labels"] != -100).sum() == 3  # the, runs, [SEP]


def test_captions_are_cut_to_the_limit(folder):
    item = {"image": Image.new("RGB", (9, 9)), "captions": ["the dog " * 20]}
    batch = CaptionCollator(tiny_processor("blip"), max_length=6)([item])
    assert batch["input_ids"].shape == (1, 6)


def test_pairs_say_which_image_they_show_and_ask_for_the_loss(folder):
    items = list(CaptionedImages(read_captions(folder / "captions.jsonl")))
    model, processor = tiny_model("hfvlm_align", "AutoModel"), tiny_processor("hfvlm_align")
    batch = PairCollator(processor, max_length=12)([items[0], items[1], items[0]])
    assert batch["image_ids"].tolist() == [0, 1, 0]
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) == 3
    with_ids = model(**batch).loss  # in evaluation too
    assert with_ids != model(**{**batch, "image_ids": torch.arange(3)}).loss
    drawn = {tuple(PairCollator(processor)(items[:1])["input_ids"][0].tolist()) for _ in range(60)}
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("architecture", "collator"), [("hfvlm_align", PairCollator), ("hfvlm_blip", CaptionCollator)]
)
def test_columns_that_the_trainer_dropped_are_asked_back(folder, tmp_path, architecture, collator):
    dataset = CaptionedImages(read_captions(folder / "captions.jsonl"), captions_per_image=1)
    model = tiny_model(architecture, "AutoModel")
    arguments = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments, train_dataset=dataset, data_collator=collator(tiny_processor(architecture)))
    with pytest.raises(ValueError, match="no 'image', only .*remove_unused_columns=False"):
        next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("architecture", ["albef", "blip"])
def test_grouped_pairs_hold_each_image_once_and_its_texts_together(folder, architecture):
    processor = tiny_processor(architecture)
    dataset = CaptionedImages(read_captions(folder / "captions.jsonl", "train"), captions_per_image=2)
    batch = GroupedPairCollator(processor, max_length=8)([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) == 4
    assert (batch["input_ids"][:, 0] == processor.tokenizer.cls_token_id).all()
    assert batch["image_ids"].tolist() == [0, 1] and batch["return_loss"] is True
    loss = tiny_model(architecture, "AutoModelForImageTextRetrieval")(**batch).loss
    assert torch.isfinite(loss)


def test_grouped_pairs_refuse_uneven_groups(folder):
    items = [{"image": Image.new("RGB", (8, 8)), "captions": ["a dog"] * n, "index": n} for n in (1, 2)]
    with pytest.raises(ValueError, match="have 1 to 2 captions.*captions_per_image=1"):
        GroupedPairCollator(tiny_processor("albef"))(items)


def test_seeded_draws_repeat_and_differ_between_rows_epochs_and_seeds():
    captions = [f"word{i}" for i in range(9)]
    drawn = {key: draw_captions(captions, 5, seeded(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert draw_captions(captions, 5, seeded(0, 0, 0)) == drawn[0, 0, 0]
    assert len({tuple(texts) for texts in drawn.values()}) == 4
