"""ALIGN's heads: the temperature, the text features, batch statistics, and other towers in their places."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import tiny_config, tiny_model, tiny_processor
from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding

from hfvlm import AlignConfig, AlignModel, AlignTextModel, AlignVisionModel, AutoModelForImageEncoding
from hfvlm.encoders.clip_text import ClipTextTower
from hfvlm.encoders.vit import VitTower


FROZEN_NORMS = {"freeze_batch_norm": True}


def model_with(**overrides) -> AlignModel:
    return tiny_model("hfvlm_align", "AutoModel", **overrides)


def batch_of(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 64, (rows, 7), generator=generator)
    return {
        "pixel_values": torch.randn(rows, 3, 32, 32, generator=generator),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def gradients(model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name or "tracked" in name}


@torch.no_grad()
def test_similarities_are_divided_by_the_temperature_and_smoothed():
    model, batch = model_with(), batch_of(3)
    model.temperature.fill_(0.25)
    outputs = model(**batch, return_loss=True)
    cosines = outputs.image_embeds @ outputs.text_embeds.t()
    torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(outputs.logits_per_image, cosines / 0.25)
    torch.testing.assert_close(outputs.logits_per_text, outputs.logits_per_image.t())
    targets = torch.eye(3) * 0.9 + 0.1 / 3
    rows, columns = (torch.log_softmax(cosines / 0.25, dim) * targets for dim in (1, 0))
    torch.testing.assert_close(outputs.loss, -(rows.sum() + columns.sum()) / 6)
    assert torch.equal(outputs.loss_itc, outputs.loss)
    assert model(**batch).loss is None


def test_the_temperature_is_learned_and_cannot_reach_zero():
    model, batch = model_with(), batch_of(3)
    assert model.temperature.item() == 1.0
    with torch.no_grad():
        model.temperature.fill_(-0.5)
    assert model(**batch).logits_per_image.isfinite().all()
    assert model.temperature.item() == -0.5, "only training may change weights"
    model.train()
    loss, grads = gradients(model, batch)
    assert model.temperature.item() == pytest.approx(0.01)
    assert loss.isfinite() and grads["temperature"].abs() > 0
    assert all(gradient is not None and gradient.isfinite().all() for gradient in grads.values())


def test_a_frozen_temperature_below_the_limit_stays():
    model = model_with()
    with torch.no_grad():
        model.temperature.fill_(0.005)
    model.freeze("vision")
    assert model.train()(**batch_of(3)).loss.isfinite()
    assert model.temperature.item() == pytest.approx(0.005)


@torch.no_grad()
def test_positions_are_read_where_the_text_tower_has_them():
    model, batch = model_with(), batch_of(2)
    later = model(**batch, position_ids=torch.arange(5, 12)[None].expand(2, 7)).text_embeds
    assert not torch.allclose(later, model(**batch).text_embeds)


@torch.no_grad()
def test_text_features_are_a_linear_layer_of_the_first_token():
    model, batch = model_with(), batch_of(2)
    batch.pop("pixel_values")
    outputs = model(**batch)
    first = model.text_model(**batch).last_hidden_state[:, 0]
    torch.testing.assert_close(outputs.pooler_output, model.text_projection(first))
    assert model.text_projection.bias.any() and model.visual_projection is None
    assert not torch.allclose(outputs.text_embeds, model(**batch, token_type_ids=torch.ones(2, 7).long()).text_embeds)


@torch.no_grad()
@pytest.mark.parametrize("sides", [(0, 5), (5, 0)], ids=["right", "left"])
def test_padding_changes_nothing(sides):
    """On the left, too, the first token is the text's, not the padding's."""
    model, batch = model_with(), batch_of(2)
    padded = {name: nn.functional.pad(value, sides) if value.ndim == 2 else value for name, value in batch.items()}
    torch.testing.assert_close(model(**padded).logits_per_image, model(**batch).logits_per_image)


@pytest.mark.parametrize("way", ["checkpointed", "reentrant", "micro-batches", "both"])
def test_recomputing_counts_each_batch_once(way):
    """Batch norm sees what is computed again in the backward pass, too; its statistics must not."""
    plain, other = (model_with().train() for _ in range(2))
    micro_batches = 2 if way in ("micro-batches", "both") else 1
    batch = batch_of(3 * micro_batches)
    if micro_batches > 1:
        other.config.micro_batch_size = 3
    if way != "micro-batches":
        other.gradient_checkpointing_enable({"use_reentrant": way == "reentrant"})
    for pixels in batch["pixel_values"].split(3):  # what the statistics are to be of
        plain.vision_model(pixels)
    loss, grads = gradients(other, batch)
    expected = statistics(plain)
    assert expected["vision_model.stem.norm.num_batches_tracked"] == micro_batches
    for name, value in statistics(other).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert loss.isfinite() and all(gradient is not None for gradient in grads.values())


def test_micro_batches_give_the_gradients_of_the_whole_batch():
    """Exactly so where batch norm does not tell the rows of each other; token types are cut up like the ids."""
    model, batch = model_with(vision_config=FROZEN_NORMS).train(), batch_of(5)
    batch["token_type_ids"] = torch.randint(0, 2, (5, 7), generator=torch.Generator().manual_seed(2))
    loss, whole = gradients(model, batch)
    model.config.micro_batch_size = 2
    cached_loss, cached = gradients(model, batch)
    torch.testing.assert_close(cached_loss, loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_towers_alone_read_a_whole_models_folder(tmp_path):
    model, batch = model_with(text_pooler=True), batch_of(2)
    model.text_pooler.weight.normal_()
    model.save_pretrained(tmp_path)
    whole, told = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(whole) is AlignModel and not any(told[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert torch.equal(whole.text_pooler.weight, model.text_pooler.weight)
    with torch.no_grad():
        expected = model(**batch)
        images, told = AutoModelForImageEncoding.from_pretrained(tmp_path, output_loading_info=True)
        assert type(images) is AlignVisionModel and not told["unexpected_keys"] and not told["missing_keys"]
        torch.testing.assert_close(images(batch["pixel_values"]).image_embeds, expected.image_embeds)
        texts, told = AutoModelForTextEncoding.from_pretrained(tmp_path, output_loading_info=True)
        assert type(texts) is AlignTextModel and not told["unexpected_keys"] and not told["missing_keys"]
        torch.testing.assert_close(
            texts(batch["input_ids"], batch["attention_mask"]).text_embeds, expected.text_embeds
        )


def test_the_carried_pooler_waits_for_no_gradient():
    model = model_with(text_pooler=True)
    assert not any("pooler" in name for name, _ in model.named_parameters())
    assert "text_pooler.bias" in model.state_dict() and "text_pooler.bias" not in model_with().state_dict()


def test_fresh_weights():
    model = AlignModel(tiny_config("hfvlm_align", temperature_init_value=0.5))
    assert model.temperature.item() == 0.5 and not model.text_projection.bias.any()
    limit = (6 / (48 + 40)) ** 0.5  # Glorot's, uniform
    weight = model.text_projection.weight
    assert 0.9 * limit < weight.abs().max() <= limit and weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)


def test_other_towers():
    vision = {"model_type": "hfvlm_vit_tower", "hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 16}
    text = {"model_type": "hfvlm_clip_text_tower", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 63}
    model = AlignModel(AlignConfig(vision_config=vision, text_config=text, projection_dim=24))
    assert type(model.vision_model) is VitTower and type(model.text_model) is ClipTextTower
    assert model.visual_projection.out_features == 24
    loss, grads = gradients(model.train(), batch_of(3))
    assert loss.isfinite() and all(gradient is not None for gradient in grads.values())


def test_images_of_another_size_are_refused_unless_asked_for():
    model, pixels = model_with(), torch.randn(2, 3, 48, 32)
    with pytest.raises(ValueError, match="pixel_values are 48x32, this model takes 32x32"):
        model.get_image_features(pixels)
    assert model.get_image_features(pixels, interpolate_pos_encoding=True).last_hidden_state.shape == (2, 96, 40)


def test_transformers_own_zero_shot_pipeline():
    model, processor = model_with(), tiny_processor("hfvlm_align")
    pipe = transformers.pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    labels = ["dog", "cat", "red bike"]
    answers = {row["label"]: row["score"] for row in pipe(image, candidate_labels=labels, hypothesis_template="a {}")}
    inputs = processor(images=image, text=[f"a {label}" for label in labels])
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(-1)[0]
    assert [answers[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)
