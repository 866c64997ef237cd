"""What every registered head promises: it is found, saved and loaded, and its outputs depend on nothing they should
not. Training, generation and bad input have files of their own beside this one."""

import pytest
import torch
import transformers
from contract.heads import head_class, pad, tensors, tiny_batch
from PIL import Image
from tiny import HEADS, tiny_model, tiny_processor
from torch.export import Dim

from hfvlm.registry import ARCHITECTURES


pytestmark = pytest.mark.contract
every_head = pytest.mark.parametrize(("model_type", "auto_class"), HEADS)
WITH_PROCESSOR = [row.model_type for row in ARCHITECTURES.values() if row.processor]


@every_head
def test_a_saved_model_loads_bit_equal_through_its_auto_class(model_type, auto_class, tmp_path):
    model = tiny_model(model_type, auto_class)
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, auto_class)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is head_class(model_type, auto_class)
    assert not any(info.values()), info
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    batch = tiny_batch(model)
    for name, value in tensors(model(**batch)).items():
        assert torch.equal(loaded(**batch)[name], value), name


@every_head
def test_auto_classes_know_the_config_and_build_the_head(model_type, auto_class, tmp_path):
    config = tiny_model(model_type, auto_class).config
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert type(getattr(transformers, auto_class).from_config(loaded)) is head_class(model_type, auto_class)


@pytest.mark.parametrize("model_type", WITH_PROCESSOR)
def test_a_saved_processor_loads_through_auto_processor(model_type, tmp_path):
    processor = tiny_processor(model_type)
    processor.save_pretrained(tmp_path)
    # AutoProcessor finds the class by config.json, which a model saves into the same folder
    tiny_model(*next(head for head in HEADS if head[0] == model_type)).config.save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    inputs = {"images": Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 60).convert("RGB"), "text": "a red dog"}
    ours, theirs = processor(**inputs), loaded(**inputs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_head
def test_eager_equals_sdpa(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = pad(tiny_batch(model), 3, "right")
    assert model.config._attn_implementation == "sdpa"
    sdpa = tensors(model(**batch))
    model.set_attn_implementation("eager")
    for name, value in tensors(model(**batch)).items():
        torch.testing.assert_close(sdpa[name], value, rtol=1e-4, atol=1e-5, msg=name)


@every_head
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_token(model_type, auto_class, attention, side):
    model = tiny_model(model_type, auto_class)
    model.set_attn_implementation(attention)
    batch = tiny_batch(model)
    padded = pad(batch, 5, side)
    real = padded["attention_mask"].bool()
    plain, padded = model(**batch)[0], model(**padded)[0]
    torch.testing.assert_close(padded[real].view_as(plain), plain, rtol=1e-4, atol=1e-5)


@every_head
def test_a_batch_equals_its_rows_alone(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model, images=3)
    together = tensors(model(**batch))
    for i in range(3):
        for name, value in tensors(model(**{key: value[i : i + 1] for key, value in batch.items()})).items():
            torch.testing.assert_close(together[name][i : i + 1], value, rtol=1e-4, atol=1e-5, msg=name)


@every_head
def test_several_texts_an_image_equal_the_image_repeated(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model, images=2, texts=3)
    repeated = {**batch, "pixel_values": batch["pixel_values"].repeat_interleave(3, dim=0)}
    torch.testing.assert_close(model(**batch)[0], model(**repeated)[0], rtol=1e-4, atol=1e-5)


@every_head
def test_outputs_depend_on_the_image_and_on_the_text(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    one, other = tiny_batch(model), tiny_batch(model, seed=1)
    plain = model(**one)[0]
    for changed in ("pixel_values", "input_ids"):
        assert not torch.allclose(model(**{**one, changed: other[changed]})[0], plain, atol=1e-2), changed


@every_head
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_finite_and_close(model_type, auto_class, dtype, tolerance):
    model = tiny_model(model_type, auto_class)
    batch = pad(tiny_batch(model), 3, "left")
    real = batch["attention_mask"].bool()
    full = model(**batch)[0][real]
    half = model.to(dtype)(**batch)[0][real]
    assert half.dtype == dtype
    assert half.isfinite().all()
    assert (half.float() - full).norm() < tolerance * full.norm()


@every_head
def test_forward_exports_for_any_batch_and_length(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    shapes = {
        "pixel_values": {0: Dim.AUTO},
        "input_ids": {0: Dim.AUTO, 1: Dim.AUTO},
        "attention_mask": {0: Dim.AUTO, 1: Dim.AUTO},
    }
    program = torch.export.export(model, (), tiny_batch(model, images=3), strict=False, dynamic_shapes=shapes)
    batch = pad(tiny_batch(model, images=2, length=9, seed=1), 2, "right")
    torch.testing.assert_close(program.module()(**batch)[0], model(**batch)[0], rtol=1e-4, atol=1e-5)


@every_head
def test_attentions_and_hidden_states_have_their_shapes(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    model.set_attn_implementation("eager")
    batch = tiny_batch(model, images=2, texts=3)
    vision, text = model.config.vision_config, model.config.text_config
    tokens = model.get_image_features(batch["pixel_values"]).last_hidden_state.shape[1]
    rows, length = batch["input_ids"].shape
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    expected = {
        "decoder_hidden_states": (text.num_hidden_layers + 1, (rows, length, text.hidden_size)),
        "decoder_attentions": (text.num_hidden_layers, (rows, text.num_attention_heads, length, length)),
        "cross_attentions": (text.num_hidden_layers, (rows, text.num_attention_heads, length, tokens)),
        "encoder_hidden_states": (vision.num_hidden_layers + 1, (2, tokens, vision.hidden_size)),
        "encoder_attentions": (vision.num_hidden_layers, (2, vision.num_attention_heads, tokens, tokens)),
    }
    for name, (layers, shape) in expected.items():
        assert len(outputs[name]) == layers, name
        assert {tuple(value.shape) for value in outputs[name]} == {shape}, name
    for name in ("decoder_attentions", "cross_attentions", "encoder_attentions"):
        torch.testing.assert_close(outputs[name][0].sum(-1), torch.ones(outputs[name][0].shape[:-1]))
    # the weights of a text are its own, not another one's that shares the image
    alone = model(**{**batch, "pixel_values": batch["pixel_values"].repeat_interleave(3, 0)}, output_attentions=True)
    torch.testing.assert_close(outputs["cross_attentions"][-1], alone["cross_attentions"][-1], rtol=1e-4, atol=1e-5)


@every_head
def test_outputs_come_as_a_tuple_too(model_type, auto_class):
    model = tiny_model(model_type, auto_class)
    batch = tiny_batch(model)
    assert torch.equal(model(**batch, return_dict=False)[0], model(**batch)[0])
