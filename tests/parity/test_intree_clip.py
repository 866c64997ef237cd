"""transformers' own CLIP with the same weights: the same numbers, and back again bit for bit."""

import pytest
import torch
import transformers
from tiny import tiny_clip_tokenizer
from transformers import CLIPImageProcessorPil

from hfvlm import ClipConfig, ClipForImageClassification, ClipModel, ClipTextModel, ClipVisionModel
from hfvlm.conversion import clip_rules
from hfvlm.conversion.convert_clip import convert, main, to_transformers
from hfvlm.conversion.rules import apply, invert


END, WORDS, LENGTH = 63, 64, 20
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
HEADS = {
    "CLIPModel": ClipModel,
    "CLIPForImageClassification": ClipForImageClassification,
    "CLIPVisionModelWithProjection": ClipVisionModel,
    "CLIPTextModelWithProjection": ClipTextModel,
}


def in_tree(head: str = "CLIPModel", end: int = END, **fields) -> transformers.PreTrainedModel:
    """A random model of transformers; the one tower's classes take their part of the configuration."""
    torch.manual_seed(0)
    towers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        vision_config={"hidden_size": 40, "intermediate_size": 80, "image_size": 32, "patch_size": 8, **towers},
        text_config={
            "vocab_size": WORDS,
            "hidden_size": 48,
            "intermediate_size": 96,
            "max_position_embeddings": LENGTH,
            "eos_token_id": end,
            **towers,
        },
        projection_dim=24,
        **fields,
    )
    for part in (config.vision_config, config.text_config):
        part.projection_dim = 24
    parts = {"CLIPVisionModelWithProjection": config.vision_config, "CLIPTextModelWithProjection": config.text_config}
    model = getattr(transformers, head)(parts.get(head, config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim:
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model


@pytest.fixture(scope="module")
def theirs():
    return in_tree()


@pytest.fixture(scope="module")
def ours(theirs):
    return convert(theirs)


def batch(texts: int = 4) -> dict[str, torch.Tensor]:
    """Three images; texts of unequal lengths, padded on the right with their end token, as the tokenizer does."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, WORDS - 2, (texts, 11), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate([11, 7, 3, 10][:texts]):
        ids[row, length - 1 :] = END
        mask[row, length:] = 0
    return {
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
    }


def equal_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one
    )


def test_features_and_similarities(theirs, ours):
    inputs = batch()
    expected, got = theirs(**inputs), ours(**inputs)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
        torch.testing.assert_close(got[name], expected[name], **TOLERANCE)
    for kind in ("image", "text"):
        names = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}[kind]
        part = {name: inputs[name] for name in names}
        expected, got = (getattr(model, f"get_{kind}_features")(**part) for model in (theirs, ours))
        torch.testing.assert_close(got.pooler_output, expected.pooler_output, **TOLERANCE)
        if kind == "image":
            torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
        else:  # after the end of a text, theirs is what the padding became
            real = part["attention_mask"].bool()
            torch.testing.assert_close(got.last_hidden_state[real], expected.last_hidden_state[real], **TOLERANCE)


def test_loss_and_gradients(theirs, ours):
    inputs, gradients, losses = {name: value[:3] for name, value in batch().items()}, [], []
    for model in (theirs, ours):
        model.zero_grad()
        losses.append(model(**inputs, return_loss=True).loss)
        losses[-1].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], **TOLERANCE)
    shapes = {name: value.shape for name, value in gradients[0].items()}
    got = apply(invert(clip_rules.in_tree_rules()), gradients[1], shapes).tensors
    assert got.keys() == gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(got[name], gradient, **TOLERANCE, msg=name)


def test_hidden_states_and_attentions(theirs, ours):
    inputs, asked = batch(), {"output_hidden_states": True, "output_attentions": True}
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    expected, got = theirs(**inputs, **asked), ours(**inputs, **asked)
    for model in (theirs, ours):
        model.set_attn_implementation("sdpa")
    real = inputs["attention_mask"].bool()
    for kind in ("vision", "text"):
        one, other = (outputs[f"{kind}_model_output"] for outputs in (expected, got))
        assert len(one.hidden_states) == len(other.hidden_states) == 3
        for a, b in zip(one.hidden_states, other.hidden_states):
            a, b = (a, b) if kind == "vision" else (a[real], b[real])
            torch.testing.assert_close(b, a, **TOLERANCE)
        assert len(one.attentions) == len(other.attentions) == 2
        for a, b in zip(one.attentions, other.attentions):  # [rows, heads, queries, keys]
            a, b = (a, b) if kind == "vision" else (weights.transpose(1, 2)[real] for weights in (a, b))
            torch.testing.assert_close(b, a, **TOLERANCE)


@pytest.mark.parametrize("head", ["CLIPVisionModelWithProjection", "CLIPTextModelWithProjection"])
def test_towers_alone(head, tmp_path):
    theirs = in_tree(head)
    theirs.save_pretrained(tmp_path)
    ours = convert(tmp_path)
    assert type(ours) is HEADS[head]
    names = ("pixel_values",) if ours.main_input_name == "pixel_values" else ("input_ids", "attention_mask")
    inputs = {name: batch()[name] for name in names}
    expected, got = theirs(**inputs), ours(**inputs)
    embeds = expected[0]
    torch.testing.assert_close(got.pooler_output, embeds, **TOLERANCE)
    assert equal_weights(to_transformers(ours), theirs)


def test_classification():
    theirs = in_tree("CLIPForImageClassification", id2label={0: "cat", 1: "dog", 2: "horse"}, label2id={"horse": 2})
    ours = convert(theirs)
    inputs = {"pixel_values": batch()["pixel_values"], "labels": torch.tensor([0, 2, 1])}
    expected, got = theirs(**inputs), ours(**inputs)
    torch.testing.assert_close(got.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(got.loss, expected.loss, **TOLERANCE)
    assert ours.config.id2label == theirs.config.id2label
    back = to_transformers(ours)
    assert equal_weights(back, theirs) and back.config.id2label == theirs.config.id2label


@pytest.mark.parametrize("end", [END, 2], ids=["end token", "legacy: the highest id"])
def test_where_a_text_ends(end):
    theirs = in_tree(end=end)
    ours = convert(theirs)
    assert ours.config.text_config.pooling == ("eos" if end == END else "argmax")
    assert ours.config.text_config.eos_token_id == END
    inputs = batch()
    inputs["input_ids"][0, 4] = END  # the first of two counts
    expected, got = theirs(**inputs), ours(**inputs)
    torch.testing.assert_close(got.text_embeds, expected.text_embeds, **TOLERANCE)
    back = to_transformers(ours)
    assert back.config.text_config.eos_token_id == end
    torch.testing.assert_close(back(**inputs).text_embeds, expected.text_embeds, atol=0, rtol=0)


def test_an_added_word_beyond_the_end_token_does_not_end_a_text():
    theirs = in_tree(end=40)
    ours = convert(theirs)
    inputs = batch()
    inputs["input_ids"][inputs["input_ids"] == END] = 40
    inputs["input_ids"][0, 3] = END
    torch.testing.assert_close(ours(**inputs).text_embeds, theirs(**inputs).text_embeds, **TOLERANCE)


def test_padding_is_on_the_right(ours):
    inputs = batch()
    with pytest.raises(ValueError, match="padding on the left"):
        ours(**{**inputs, "attention_mask": inputs["attention_mask"].flip(1)})


def test_another_image_size(theirs, ours):
    """On the fly, and with the table resized at conversion, which theirs then loads without interpolating."""
    larger = {**batch(), "pixel_values": torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))}
    expected = theirs(**larger, interpolate_pos_encoding=True)
    resized = convert(theirs, image_size=48)
    for got in (ours(**larger, interpolate_pos_encoding=True), resized(**larger), to_transformers(resized)(**larger)):
        torch.testing.assert_close(got.image_embeds, expected.image_embeds, **TOLERANCE)


def test_round_trip_keeps_every_bit(theirs, ours):
    back = to_transformers(ours)
    assert equal_weights(back, theirs)
    again = convert(back)
    assert equal_weights(again, ours)
    assert again.config.to_dict() == ours.config.to_dict()


def test_folders_convert_both_ways_on_the_command_line(theirs, ours, tmp_path):
    """A sharded folder with a processor, as the Hub has them, to hfvlm and back; a foreign setting is carried over."""
    source = tmp_path / "in-tree"
    theirs.save_pretrained(source, max_shard_size="100KB")
    assert (source / "model.safetensors.index.json").exists()
    size = {"shortest_edge": 36}
    images = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3])
    transformers.CLIPProcessor(images, tiny_clip_tokenizer(WORDS)).save_pretrained(source)
    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    assert type(model) is ClipModel and equal_weights(model, ours)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert (processor.image_processor.size.shortest_edge, processor.image_processor.crop_size.height) == (36, 32)
    assert processor.tokenizer.model_max_length == LENGTH

    arguments = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "transformers"]
    assert main(arguments) == 0
    assert equal_weights(transformers.CLIPModel.from_pretrained(tmp_path / "back"), theirs)
    back = transformers.CLIPProcessor.from_pretrained(tmp_path / "back", use_fast=False)
    assert (
        back(text="the red dog")["input_ids"]
        == transformers.CLIPTokenizer.from_pretrained(source)("the red dog")["input_ids"]
    )


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"vision_config": {"pooling": "mean"}}, "vision_config.pooling='mean'"),
        ({"vision_config": {"pre_norm": False, "patch_bias": True}}, "patch_bias=True, vision_config.pre_norm=False"),
        ({"text_config": {"causal": False}}, "text_config.causal=False"),
        ({"text_config": {"pooling": "last"}}, "text_config.pooling='last'"),
        ({"text_projection_bias": True}, "text_projection_bias=True"),
        ({"logit_bias_init_value": -10.0}, "logit_bias_init_value"),
        ({"vision_config": {"model_type": "hfvlm_resnet_tower", "width": 8, "output_dim": 32}}, "hfvlm_resnet_tower"),
    ],
)
def test_what_transformers_clip_cannot_hold(fields, named):
    with pytest.raises(ValueError, match=named):
        to_transformers(ClipModel(ClipConfig.variant("tiny", **fields)))
