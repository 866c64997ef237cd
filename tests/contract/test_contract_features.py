"""What every head gives on the way to its outputs: features of each modality, hidden states and attentions."""

from collections.abc import Iterator

import pytest
import torch
from contract.heads import (
    FUSED,
    TWO_TOWERS,
    WITH_IMAGES,
    assert_close,
    every,
    every_build,
    every_head,
    rows,
    tensors,
    tiny_batch,
)
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder

from hfvlm.encoders.bert import BertLayer
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.attention import CrossAttention


pytestmark = pytest.mark.contract
RECORDED = ("hidden_states", "attentions", "cross_attentions")


def watch_towers(model: torch.nn.Module) -> dict[str, tuple[VlmPreTrainedModel, ModelOutput]]:
    """Fills in, at the next forward pass, what each tower returns when it is first called (not a momentum copy)."""
    seen: dict[str, tuple[VlmPreTrainedModel, ModelOutput]] = {}

    def watch(name: str, tower: VlmPreTrainedModel) -> None:
        def keep(module: VlmPreTrainedModel, args: tuple, outputs: ModelOutput) -> None:
            seen.setdefault(name, (module, outputs))

        tower.register_forward_hook(keep)

    for name, module in model.named_modules():
        if name and isinstance(module, VlmPreTrainedModel) and any(p.requires_grad for p in module.parameters()):
            watch(name, module)
    return seen


def tuples(outputs: ModelOutput) -> Iterator[tuple[torch.Tensor, ...]]:
    """Every tuple of tensors that a model returned, also the nested ones."""
    for value in outputs.values():
        if isinstance(value, ModelOutput):
            yield from tuples(value)
        elif isinstance(value, tuple):
            yield value


@every_build
def test_what_the_towers_record_comes_out_of_the_head_and_has_its_shape(head):
    model = head.model()
    model.set_attn_implementation("eager")
    seen = watch_towers(model)
    outputs = model(**tiny_batch(model), output_hidden_states=True, output_attentions=True)
    given = list(tuples(outputs))
    assert seen
    for name, (tower, recorded) in seen.items():
        assert "hidden_states" in tower._can_record_outputs, name
        for field, source in tower._can_record_outputs.items():
            source = source.target_class if isinstance(source, OutputRecorder) else source
            count = sum(isinstance(module, source) for module in tower.modules())
            values = getattr(recorded, field, None)
            if field == "attentions" and getattr(tower, "direction", None) == "both":
                count //= 2  # a row is read in one direction
            first = getattr(tower.config, "fusion_layer", 0)
            if field != "cross_attentions" and len(values) == first + (field == "hidden_states"):
                count = first or count  # first read alone, by the layers below
            if field == "cross_attentions" and not values:  # the text was read without the image
                count = 0
            if count == 0:
                assert not values, f"{name}: {field}"
                continue
            assert len(values) == count + (field == "hidden_states"), f"{name}: {field}"
            assert any(all(a is b for a, b in zip(one, values, strict=False)) for one in given), f"{name}: {field}"
            if field != "hidden_states":
                for weights in values:  # [rows, heads, queries, keys]
                    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
            elif hasattr(tower.config, "num_hidden_layers"):
                last = recorded.last_hidden_state
                assert {tuple(value.shape) for value in values} == {tuple(last.shape)}, name
                assert last.shape[-1] == tower.config.hidden_size


@every_head
def test_recording_changes_nothing(head):
    model = head.model()
    batch = tiny_batch(model)
    plain = tensors(model(**batch))
    recorded = tensors(model(**batch, output_hidden_states=True))
    assert_close({name: recorded[name] for name in plain}, plain)
    assert len(recorded) > len(plain)


@every(FUSED)
def test_attentions_and_hidden_states_of_texts_that_share_an_image(head):
    model = head.model()
    model.set_attn_implementation("eager")
    batch = tiny_batch(model, images=2, texts=3)
    vision, text = model.config.vision_config, model.config.text_config
    tokens = model.get_image_features(batch["pixel_values"]).last_hidden_state.shape[1]
    count, length = batch["input_ids"].shape
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    tower = model.text_model
    fusing = sum(isinstance(module, CrossAttention) for module in tower.modules())
    read = sum(isinstance(module, BertLayer) for module in tower.modules())
    if text.fusion_layer and "text_model_output" in outputs:  # by the layers below, before it is fused
        read -= text.fusion_layer
    texts, images = outputs, outputs
    names = ["decoder_hidden_states", "decoder_attentions", "encoder_hidden_states", "encoder_attentions"]
    if "vision_model_output" in outputs:
        names, images = ["hidden_states", "attentions"] * 2, outputs["vision_model_output"]
    expected = [
        (texts[names[0]], read + 1, (count, length, text.hidden_size)),
        (texts[names[1]], read, (count, text.num_attention_heads, length, length)),
        (texts["cross_attentions"], fusing, (count, text.num_attention_heads, length, tokens)),
        (images[names[2]], vision.num_hidden_layers + 1, (2, tokens, vision.hidden_size)),
        (images[names[3]], vision.num_hidden_layers, (2, vision.num_attention_heads, tokens, tokens)),
    ]
    for values, layers, shape in expected:
        assert len(values) == layers
        assert {tuple(value.shape) for value in values} == {shape}
    # the weights of a text are its own, not another one's that shares the image
    repeated = {name: batch[name].repeat_interleave(3, 0) for name in head.images}
    alone = model(**{**batch, **repeated}, output_attentions=True)
    torch.testing.assert_close(outputs["cross_attentions"][-1], alone["cross_attentions"][-1], rtol=1e-4, atol=1e-5)


@every([head for head in WITH_IMAGES if hasattr(head.cls, "get_image_features")])
def test_image_features_have_a_vector_an_image(head):
    model = head.model()
    pixel_values = tiny_batch(model, images=3)["pixel_values"]
    features = model.get_image_features(pixel_values)
    assert features.last_hidden_state.ndim == 3 and features.pooler_output.ndim == 2
    assert len(features.last_hidden_state) == len(features.pooler_output) == 3
    torch.testing.assert_close(
        model.get_image_features(pixel_values[1:2]).pooler_output, features.pooler_output[1:2], rtol=1e-4, atol=1e-5
    )


@every(TWO_TOWERS)
def test_any_number_of_images_is_compared_with_any_number_of_texts(head):
    model = head.model()
    images, texts = rows(tiny_batch(model, images=5), 0, 3), tiny_batch(model, images=5)
    batch = {**texts, "pixel_values": images["pixel_values"]}
    outputs = model(**batch)
    assert outputs.logits_per_image.shape == (3, 5)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.t())
    for name, count in (("image_embeds", 3), ("text_embeds", 5)):
        torch.testing.assert_close(outputs[name].norm(dim=-1), torch.ones(count))
    # scores order as the cosines do
    cosines = outputs.image_embeds @ outputs.text_embeds.t()
    assert torch.equal(outputs.logits_per_image.flatten().argsort(), cosines.flatten().argsort())
    assert outputs.loss is None


@every(TWO_TOWERS)
def test_each_modality_alone_gives_what_both_together_give(head):
    model = head.model()
    batch = tiny_batch(model)
    both = model(**batch)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(pixel_values=batch["pixel_values"]).image_embeds, both.image_embeds)
    torch.testing.assert_close(model(**texts).text_embeds, both.text_embeds)
    for features, embeds in (
        (model.get_image_features(batch["pixel_values"]), both.image_embeds),
        (model.get_text_features(**texts), both.text_embeds),
    ):
        torch.testing.assert_close(torch.nn.functional.normalize(features.pooler_output, dim=-1), embeds)
