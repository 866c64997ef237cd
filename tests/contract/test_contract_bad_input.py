"""What every head promises for input that it cannot take: an error that names the argument and the way out."""

import numpy as np
import pytest
import torch
from contract.heads import ENCODER_DECODERS, WITH_LOSS, pad, tiny_batch
from huggingface_hub.errors import StrictDataclassError
from tiny import HEADS, tiny_config, tiny_model

from hfvlm.registry import ARCHITECTURES, find, load


pytestmark = pytest.mark.contract
every_head = pytest.mark.parametrize(("model_type", "auto_class"), HEADS)
every_learner = pytest.mark.parametrize(("model_type", "auto_class"), WITH_LOSS)
every_encoder_decoder = pytest.mark.parametrize(("model_type", "auto_class"), ENCODER_DECODERS)
every_architecture = pytest.mark.parametrize("model_type", list(ARCHITECTURES))


@every_head
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: (x * 50).to(torch.uint8), TypeError, "pixel_values must be floating point, got torch.uint8"),
        (lambda x: x.long(), TypeError, "pixel_values must be floating point, got torch.int64"),
        (lambda x: x[0], ValueError, r"pixel_values must have shape \[batch, 3, height, width\], got \[3, 32, 32\]"),
        (lambda x: x[:, :1], ValueError, r"pixel_values must have shape \[batch, 3, .*got \[2, 1, 32, 32\]"),
        (lambda x: x.permute(0, 2, 3, 1), ValueError, r"pixel_values must have shape \[batch, 3, "),
        (lambda x: x[:, :, :24], ValueError, "pixel_values are 24x32, this model takes 32x32.*interpolate_pos"),
        (lambda x: np.asarray(x), TypeError, "pixel_values must be a tensor, got ndarray"),
        (lambda x: list(x), TypeError, "pixel_values must be a tensor, got list"),
        (lambda x: None, ValueError, "pass pixel_values or encoder_outputs"),
    ],
    ids=["uint8", "int64", "3-d", "one-channel", "channels-last", "size", "numpy", "list", "none"],
)
def test_pixels_that_no_model_can_read(model_type, auto_class, change, error, message):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    with pytest.raises(error, match=message):
        model(**{**batch, "pixel_values": change(batch["pixel_values"])})


@every_head
def test_another_size_is_fine_when_asked_for(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    larger = torch.nn.functional.interpolate(batch["pixel_values"], size=(48, 64))
    assert model(**{**batch, "pixel_values": larger}, interpolate_pos_encoding=True)[0].isfinite().all()
    plain = model(**batch)[0]
    torch.testing.assert_close(model(**batch, interpolate_pos_encoding=True)[0], plain)


@every_head
def test_texts_that_do_not_fit_the_images(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model, images=2)
    three = tiny_batch(model, images=3)
    with pytest.raises(ValueError, match="3 text rows cannot be shared evenly among 2 images: input_ids"):
        model(**{**three, "pixel_values": batch["pixel_values"]})


@every_head
def test_texts_of_the_wrong_shape(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match=r"input_ids must have shape \[batch, length\], got \[12\]"):
        model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"][0])
    with pytest.raises(ValueError, match=r"attention_mask \[2, 11\] must cover the 12 tokens"):
        model(**{**batch, "attention_mask": batch["attention_mask"][:, 1:]})


@every_head
def test_texts_longer_than_the_position_table(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    limit = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens, this model reads {limit}"):
        model(**tiny_batch(model, length=limit + 1))
    longest = pad(tiny_batch(model, length=limit), 5, "left")  # padding takes no position
    assert model(**longest)[0].isfinite().all()


@every_learner
def test_labels_out_of_line_with_the_inputs(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match=r"labels \[2, 11\] must be aligned with input_ids \[2, 12\]"):
        model(**batch, labels=batch["input_ids"][:, 1:])


@every_head
def test_misnamed_arguments_are_not_swallowed(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    for name, meant in {
        "decoder_input_ids": "input_ids",
        "decoder_attention_mask": "attention_mask",
        "pixel_value": "pixel_values",
    }.items():
        with pytest.raises(TypeError, match=f"unknown argument '{name}', did you mean '{meant}'"):
            model(**batch, **{name: batch["input_ids"]})
    model(**batch, output_attentions=False, num_items_in_batch=2, cu_seq_lens_q=None, is_causal=None)


@every_learner
def test_misspelt_labels_are_not_swallowed(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    with pytest.raises(TypeError, match="unknown argument 'lables', did you mean 'labels'"):
        model(**batch, lables=batch["input_ids"])


@every_encoder_decoder
def test_labels_alone_that_mask_a_prompt(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    labels = batch["input_ids"].clone()
    labels[0, :3] = -100
    with pytest.raises(ValueError, match="pass input_ids too, the masked prompt cannot be recovered from"):
        model(pixel_values=batch["pixel_values"], labels=labels)
    assert model(**batch, labels=labels).loss.isfinite()


@every_encoder_decoder
def test_generating_from_nothing_or_from_what_does_not_fit(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model, images=2)
    with pytest.raises(ValueError, match="pass pixel_values or encoder_outputs"):
        model.generate(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids has 3 prompts for 2 images"):
        model.generate(pixel_values=batch["pixel_values"], input_ids=tiny_batch(model, images=3)["input_ids"])
    limit = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"this model reads {limit} .*fewer new tokens"):
        model.generate(pixel_values=batch["pixel_values"], max_new_tokens=limit + 5, min_new_tokens=limit + 5)


@every_architecture
@pytest.mark.parametrize("sub_config", ["vision_config", "text_config"])
def test_a_width_that_the_heads_do_not_divide(model_type, sub_config):
    variant = load(find(model_type).config).variant
    width = getattr(tiny_config(model_type), sub_config).hidden_size
    with pytest.raises(
        (ValueError, StrictDataclassError), match=rf"hidden_size \({width}\).*num_attention_heads \(7\)"
    ):
        variant("tiny", **{sub_config: {"num_attention_heads": 7}})


@every_architecture
def test_impossible_configs_name_the_field(model_type):
    variant = load(find(model_type).config).variant
    with pytest.raises((ValueError, StrictDataclassError), match="image_size .33. must be a multiple of patch_size"):
        variant("tiny", vision_config={"image_size": 33})
    with pytest.raises(
        (ValueError, StrictDataclassError), match="vision_config.model_type is 'resnext'; known towers"
    ):
        variant("tiny", vision_config={"model_type": "resnext"})
    with pytest.raises((TypeError, StrictDataclassError), match="hidden_size"):
        variant("tiny", vision_config={"hidden_size": "wide"})


@every_architecture
def test_towers_that_do_not_fit_each_other(model_type):
    with pytest.raises(
        (ValueError, StrictDataclassError), match=r"encoder_hidden_size \(7\) must equal vision_config"
    ):
        load(find(model_type).config).variant("tiny", text_config={"encoder_hidden_size": 7})


@every_architecture
def test_an_unknown_variant_names_the_known(model_type):
    with pytest.raises(ValueError, match="unknown .* variant 'huge'; choose from .*tiny"):
        load(find(model_type).config).variant("huge")
