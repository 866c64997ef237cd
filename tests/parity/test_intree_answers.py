"""transformers' own BLIP that answers questions, with the same weights: the same loss, the same answers, and back."""

import pytest
import torch
import transformers
from tiny import tiny_model

from hfvlm import BlipForVisualQuestionAnswering
from hfvlm.conversion.convert_blip import convert, main, to_transformers


END, START, ASK, WORDS = 3, 5, 63, 64
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BlipConfig(
        vision_config={"image_size": 32, "patch_size": 8, **sizes},
        text_config={
            "vocab_size": WORDS,
            "max_position_embeddings": 40,
            "bos_token_id": START,
            "sep_token_id": END,
            "label_smoothing": 0.1,
            **sizes,
        },
    )
    model = transformers.BlipForQuestionAnswering(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.15)
        model.text_decoder.cls.predictions.bias[END] += 2.0  # so that some answers end early
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    return convert(theirs)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, WORDS - 1, (3, 7), generator=generator)
    ids[:, 0] = ASK  # theirs takes questions as they come, the original starts them so
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def equal_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_loss_of_answers(theirs, ours, batch):
    """Theirs is a mean over tokens, ours a sum over each answer's, divided by the questions. Theirs reads padding in
    training as well, which ours and the original never do."""
    batch = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    labels = torch.randint(6, WORDS - 1, (3, 4), generator=torch.Generator().manual_seed(2))
    labels[:, 0] = START
    expected = theirs(**batch, decoder_input_ids=labels, labels=labels)
    got = ours(**batch, labels=labels)
    torch.testing.assert_close(got.loss / 3, expected.loss, **TOLERANCE)
    vision = got.question_model_output.vision_model_output
    torch.testing.assert_close(vision.last_hidden_state, expected.last_hidden_state, **TOLERANCE)


@pytest.mark.parametrize(
    "search", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -1.0}]
)
def test_writes_the_same_answers(theirs, ours, batch, search):
    """Also those that read padding."""
    expected = theirs.generate(**batch, **search, max_length=12)
    got = ours.generate(**batch, **search, max_length=12)
    assert got.tolist() == expected.tolist()


def test_answers_need_not_read_padding(ours, batch):
    careful = BlipForVisualQuestionAnswering(ours.config).eval()
    careful.load_state_dict(ours.state_dict())
    states = {}
    for name, model in (("padded", ours), ("careful", careful)):
        model.config.answers_read_padding = name == "padded"
        written = model.generate(**batch, max_length=12, return_dict_in_generate=True, output_logits=True)
        alone = {key: value[1:2, :5] if key != "pixel_values" else value[1:2] for key, value in batch.items()}
        single = model.generate(**alone, max_length=12, return_dict_in_generate=True, output_logits=True)
        states[name] = torch.allclose(written.logits[0][1], single.logits[0][0], atol=1e-4)
    ours.config.answers_read_padding = True
    assert states == {"padded": False, "careful": True}


def test_round_trip_keeps_every_bit(theirs, ours, tmp_path):
    theirs.save_pretrained(tmp_path / "in-tree")
    assert main(["--checkpoint", str(tmp_path / "in-tree"), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    assert equal_weights(BlipForVisualQuestionAnswering.from_pretrained(tmp_path / "ours"), ours)
    arguments = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "transformers"]
    assert main(arguments) == 0
    assert equal_weights(transformers.BlipForQuestionAnswering.from_pretrained(tmp_path / "back"), theirs)
    again = convert(to_transformers(ours))
    assert equal_weights(again, ours) and again.config.to_dict() == ours.config.to_dict()


def test_towers_of_two_widths_have_no_place_in_transformers():
    with pytest.raises(ValueError, match="towers of one width.*40 and text_config.hidden_size 48"):
        to_transformers(tiny_model("blip", "AutoModelForVisualQuestionAnswering"))
