"""What every head promises for input that it cannot take: an error that names the argument and the way out."""

import inspect

import numpy as np
import pytest
import torch
from contract.heads import (
    ARCHITECTURES,
    CLASSIFIERS,
    ENCODER_DECODERS,
    FUSED,
    GENERATIVE,
    LABELLED,
    RESIZING,
    TEXT_LEARNERS,
    TWO_TOWERS,
    WITH_IMAGES,
    WITH_TEXT,
    assert_close,
    every,
    every_head,
    heads,
    pad,
    tensors,
    tiny_batch,
    to_learn,
)
from huggingface_hub.errors import StrictDataclassError
from tiny import sub_configs

from hfvlm.registry import find, load


pytestmark = pytest.mark.contract
REFUSED = (ValueError, TypeError, StrictDataclassError)
every_architecture = every(ARCHITECTURES)
every_part = pytest.mark.parametrize(
    ("head", "part"), [(head, part) for head in ARCHITECTURES for part in sub_configs(head.config())], ids=str
)


def fields(config) -> dict[str, type]:
    """The typed fields of a configuration."""
    return {name: field.type for name, field in type(config).__dataclass_fields__.items()}


@every(WITH_IMAGES)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: (x * 50).to(torch.uint8), TypeError, "pixel_values must be floating point, got torch.uint8"),
        (lambda x: x.long(), TypeError, "pixel_values must be floating point, got torch.int64"),
        (lambda x: x[0], ValueError, r"pixel_values must have shape \[batch, 3, h.*, got \[3, {size}, {size}\]"),
        (lambda x: x[:, :1], ValueError, r"pixel_values must have shape \[batch, 3, .*got \[2, 1, {size}, {size}\]"),
        (lambda x: x.permute(0, 2, 3, 1), ValueError, r"pixel_values must have shape \[batch, 3, "),
        (
            lambda x: x[:, :, :24],
            ValueError,
            "pixel_values are 24x{size}, this model takes {size}x{size}.*interpolate",
        ),
        (lambda x: x.index_fill(3, torch.tensor([5]), float("nan")), ValueError, "pixel_values hold NaN or infinity"),
        (lambda x: x / 0, ValueError, "pixel_values hold NaN or infinity"),
        (lambda x: np.asarray(x), TypeError, "pixel_values must be a tensor, got ndarray"),
        (lambda x: list(x), TypeError, "pixel_values must be a tensor, got list"),
    ],
    ids=["uint8", "int64", "3-d", "one-channel", "channels-last", "size", "nan", "infinity", "numpy", "list"],
)
def test_pixels_that_no_model_can_read(head, change, error, message):
    model = head.model()
    batch = tiny_batch(model)
    with pytest.raises(error, match=message.replace("{size}", str(model.config.vision_config.image_size))):
        model(**{**batch, **{name: change(batch[name]) for name in head.images}})


@every(heads(lambda head: len(head.images) > 1))
def test_every_view_is_looked_at(head):
    model = head.model()
    batch = tiny_batch(model)
    for name in head.images:
        for change in (lambda x: x.long(), lambda x: x[:, :1], lambda x: x * float("nan"), lambda x: x[:1]):
            with pytest.raises((ValueError, TypeError), match="pixel_values"):
                model(**to_learn(model, {**batch, name: change(batch[name])}))


@every_head
def test_no_input_at_all(head):
    model = head.model()
    with pytest.raises((ValueError, TypeError), match="pixel_values" if head.images else "input_ids"):
        model()


@every(RESIZING)
def test_another_size_is_fine_when_asked_for(head):
    model = head.model()
    batch = tiny_batch(model)
    size = model.config.vision_config.image_size
    larger = {name: torch.nn.functional.interpolate(batch[name], (size + 16, 2 * size)) for name in head.images}
    for value in tensors(model(**{**batch, **larger}, interpolate_pos_encoding=True)).values():
        assert value.isfinite().all()
    assert_close(tensors(model(**batch, interpolate_pos_encoding=True)), tensors(model(**batch)))


@every([head for head in FUSED if head not in TWO_TOWERS])  # those compare any number of texts with any of images
def test_texts_that_do_not_fit_the_images(head):
    model = head.model()
    batch = tiny_batch(model, images=2)
    three = tiny_batch(model, images=3)
    with pytest.raises(ValueError, match="3 text rows cannot be shared evenly among 2 images: input_ids"):
        model(**{**three, **{name: batch[name] for name in head.images}})


@every(WITH_TEXT)
def test_texts_of_the_wrong_shape(head):
    model = head.model()
    batch = tiny_batch(model)
    alone = {name: value for name, value in batch.items() if name != "attention_mask"}
    with pytest.raises(ValueError, match=r"input_ids must have shape \[batch, length\], got \[12\]"):
        model(**{**alone, "input_ids": batch["input_ids"][0]})
    with pytest.raises(ValueError, match=r"attention_mask \[2, 11\] must cover the 12 tokens"):
        model(**{**batch, "attention_mask": batch["attention_mask"][:, 1:]})


@every(WITH_TEXT)
def test_texts_longer_than_the_position_table(head):
    model = head.model()
    limit = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens, this model reads {limit}"):
        model(**tiny_batch(model, length=limit + 1))
    assert model(**tiny_batch(model, length=limit))[0].isfinite().all()


@every(GENERATIVE)
def test_padding_takes_no_position(head):
    model = head.model()
    limit = model.config.text_config.max_position_embeddings
    assert model(**pad(tiny_batch(model, length=limit), 5, "left"))[0].isfinite().all()


@every(TEXT_LEARNERS)
def test_labels_out_of_line_with_the_inputs(head):
    model = head.model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match=r"labels \[2, 11\] must be aligned with input_ids \[2, 12\]"):
        model(**batch, labels=batch["input_ids"][:, 1:])


@every(CLASSIFIERS)
def test_classes_that_do_not_exist_or_do_not_fit_the_images(head):
    model = head.model(num_labels=5)
    batch = tiny_batch(model)
    for wrong in (5, -1):
        with pytest.raises(ValueError, match=f"labels hold {wrong}, this model has classes 0 to 4"):
            model(**batch, labels=torch.tensor([0, wrong]))
    for labels in (torch.tensor([0, 1, 2]), torch.zeros(2, 4), torch.tensor([[0], [1]])):
        with pytest.raises(ValueError, match="labels must have shape"):
            model(**batch, labels=labels)


@every(TWO_TOWERS)
def test_a_loss_of_one_modality(head):
    model = head.model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match="pass both pixel_values and input_ids"):
        model(pixel_values=batch["pixel_values"], return_loss=True)
    with pytest.raises(ValueError, match="pass both pixel_values and input_ids"):
        model(input_ids=batch["input_ids"], return_loss=True)


@every_head
def test_misnamed_arguments_are_not_swallowed(head):
    model = head.model()
    batch = tiny_batch(model)
    parameters = inspect.signature(head.cls.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD][1:]
    assert names
    for name in names:
        misspelt = name[:-2] + name[-1] + name[-2] if name[-1] != name[-2] else name[:-1]
        with pytest.raises(TypeError, match=f"unknown argument '{misspelt}', did you mean '{name}'"):
            model(**batch, **{misspelt: None})
    model(**batch, output_attentions=False, num_items_in_batch=2, cu_seq_lens_q=None, is_causal=None)


@every(ENCODER_DECODERS)
def test_other_libraries_names_of_arguments(head):
    model = head.model()
    batch = tiny_batch(model)
    for name, meant in {"decoder_input_ids": "input_ids", "decoder_attention_mask": "attention_mask"}.items():
        with pytest.raises(TypeError, match=f"unknown argument '{name}', did you mean '{meant}'"):
            model(**batch, **{name: batch["input_ids"]})


@every(LABELLED)
def test_misspelt_labels_are_not_swallowed(head):
    model = head.model()
    batch = to_learn(model, tiny_batch(model))
    with pytest.raises(TypeError, match="unknown argument 'lables', did you mean 'labels'"):
        model(lables=batch.pop("labels"), **batch)


@every(ENCODER_DECODERS)
def test_labels_alone_that_mask_a_prompt(head):
    model = head.model()
    batch = tiny_batch(model)
    labels = batch["input_ids"].clone()
    labels[0, :3] = -100
    with pytest.raises(ValueError, match="pass input_ids too, the masked prompt cannot be recovered from"):
        model(pixel_values=batch["pixel_values"], labels=labels)
    if head in TEXT_LEARNERS:
        assert model(**batch, labels=labels).loss.isfinite()


@every(ENCODER_DECODERS)
def test_generating_from_nothing_or_from_what_does_not_fit(head):
    model = head.model()
    batch = tiny_batch(model, images=2)
    with pytest.raises(ValueError, match="pass pixel_values or encoder_outputs"):
        model.generate(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids has 3 prompts for 2 images"):
        model.generate(pixel_values=batch["pixel_values"], input_ids=tiny_batch(model, images=3)["input_ids"])
    limit = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"this model reads {limit} .*fewer new tokens"):
        model.generate(pixel_values=batch["pixel_values"], max_new_tokens=limit + 5, min_new_tokens=limit + 5)


@every_part
def test_impossible_parts_name_the_field(head, part):
    config = getattr(head.config(), part)
    wrong: list[tuple[dict, str]] = [({"model_type": "resnext"}, f"{part}.model_type is 'resnext'; known towers")]
    number = next(name for name, kind in fields(config).items() if kind is int)
    wrong.append(({number: "wide"}, number))
    if {"hidden_size", "num_attention_heads"} <= fields(config).keys():
        message = rf"hidden_size \({config.hidden_size}\).*num_attention_heads \(7\)"
        wrong.append(({"num_attention_heads": 7}, message))
    if "patch_size" in fields(config):
        wrong.append(({"image_size": 33}, "image_size .33. must be a multiple of patch_size"))
    if config.to_dict().get("encoder_hidden_size") is not None:
        wrong.append(({"encoder_hidden_size": 7}, r"encoder_hidden_size \(7\) must equal vision_config"))
    for change, message in wrong:
        with pytest.raises(REFUSED, match=message):
            head.config(**{part: change})


@every_part
def test_a_part_that_is_no_config(head, part):
    with pytest.raises(REFUSED, match=part):
        load(find(head.model_type).config)(**{part: "large"})


@every_architecture
def test_an_unknown_variant_names_the_known(head):
    with pytest.raises(ValueError, match="unknown .* variant 'huge'; choose from .*tiny"):
        load(find(head.model_type).config).variant("huge")
