"""ALBEF's text assignment: given pairs and drawn ones, where it starts, what it is a start for, and bad input."""

import pytest
import torch
from contract.heads import tiny_batch
from tiny import tiny_model

import hfvlm
from hfvlm import AutoModelForTextAssignment, AutoModelForVisualReasoning


def assignment(**fields):
    return tiny_model("albef", "AutoModelForTextAssignment", **fields)


def test_given_pairs_are_read_and_tell_their_classes():
    model = assignment()
    batch = tiny_batch(model, images=3, texts=2)
    pairs = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 0], [1, 2], [2, 0]])
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    outputs = model(**batch, image_pairs=pairs, return_loss=True)
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels)
    torch.testing.assert_close(outputs.loss, expected)
    assert torch.equal(outputs.image_pairs, pairs)
    ids = torch.tensor([7, 7, 9])  # the first two images are one
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels)
    torch.testing.assert_close(model(**batch, image_pairs=pairs, image_ids=ids, return_loss=True).loss, expected)
    one = {name: batch[name][3:4] for name in ("input_ids", "attention_mask")}
    alone = model(pixel_values=batch["pixel_values"][[2, 0]], image_pairs=torch.tensor([[0, 1]]), **one)
    torch.testing.assert_close(alone.logits, outputs.logits[3:4])
    assert alone.loss is None


def test_drawn_pairs_are_those_that_were_read_and_leave_out_the_same_image():
    model = assignment().train()
    batch = tiny_batch(model, images=4)
    ids = torch.tensor([5, 5, 5, 8])
    torch.manual_seed(0)
    drawn = [model(**batch, image_ids=ids) for _ in range(8)]
    own = torch.arange(4)
    for outputs in drawn:
        others = outputs.image_pairs.masked_fill(outputs.image_pairs == own[:, None], -1)
        assert not ((others[:3] >= 0) & (others[:3] < 3)).any()
        again = model(**batch, image_pairs=outputs.image_pairs)
        torch.testing.assert_close(again.logits, outputs.logits)
        torch.testing.assert_close(again.loss, outputs.loss)


def test_it_starts_from_pretraining_and_reasoning_starts_from_it(tmp_path):
    pretrained = tiny_model("albef", "AutoModelForPreTraining")
    pretrained.save_pretrained(tmp_path / "pretrained")
    model, info = AutoModelForTextAssignment.from_pretrained(tmp_path / "pretrained", output_loading_info=True)
    assert type(model) is hfvlm.AlbefForTextAssignment and not info["unexpected_keys"]
    assert torch.equal(model.vision_proj.weight, pretrained.vision_proj.weight)
    mlps = [layers[-1].mlp.fc1.weight for layers in (model.text_model.layers, model.text_model.second_layers)]
    assert torch.equal(*mlps) and torch.equal(mlps[0], pretrained.text_model.layers[-1].mlp.fc1.weight)
    assert not model.vision_proj.weight.requires_grad
    model.save_pretrained(tmp_path / "assigned")
    reasoning, info = AutoModelForVisualReasoning.from_pretrained(
        tmp_path / "assigned", momentum=None, output_loading_info=True
    )
    assert not info["unexpected_keys"] and {name.split(".")[0] for name in info["missing_keys"]} == {"cls_head"}
    last = reasoning.text_model.second_layers[-1].mlp.fc1.weight
    assert torch.equal(last, model.text_model.second_layers[-1].mlp.fc1.weight)


def test_bad_input_is_named():
    model = assignment()
    batch = tiny_batch(model, images=3)
    with pytest.raises(ValueError, match="pass both pixel_values and input_ids"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="got 2 images and 3 texts; pass return_loss=False"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:2]}, return_loss=True)
    with pytest.raises(ValueError, match=r"image_ids must be \[3\], one an image, got \[2\]"):
        model(**batch, image_ids=torch.tensor([0, 1]), return_loss=True)
    with pytest.raises(ValueError, match=r"image_pairs must be \[3, 2\], two images a text, got \[3\]"):
        model(**batch, image_pairs=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="image_pairs must be between 0 and 2, got 0 to 3"):
        model(**batch, image_pairs=torch.tensor([[0, 1], [1, 2], [2, 3]]))
    with pytest.raises(ValueError, match="projection_dim must be above 0: pairs of images are drawn"):
        assignment(projection_dim=0)
