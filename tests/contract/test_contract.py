"""What every registered head promises: it is found, saved and loaded, and its outputs depend on nothing they should
not. Features, training, generation and bad input have files of their own beside this one."""

import pytest
import torch
import transformers
from contract.heads import (
    ARCHITECTURES,
    CLASSES,
    FUSED,
    REGISTERED,
    WITH_TEXT,
    assert_close,
    every,
    every_build,
    every_head,
    of_real_tokens,
    pad,
    rows,
    tensors,
    tiny_batch,
)
from PIL import Image
from tiny import tiny_processor
from torch.export import Dim

from hfvlm.registry import auto_class, find


pytestmark = pytest.mark.contract
every_registered = pytest.mark.parametrize(
    "head", REGISTERED, ids=lambda head: f"{find(head.model_type).name}-{head.auto_class}"
)


@every_registered
def test_a_saved_model_loads_bit_equal_through_its_auto_class(head, tmp_path):
    model = head.model()
    model.save_pretrained(tmp_path)
    loaded, info = auto_class(head.auto_class).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is head.cls
    assert not any(info.values()), info
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    batch = tiny_batch(model)
    # not to the bit: where memory begins decides which of its kernels a convolution runs
    assert_close(tensors(loaded(**batch)), tensors(model(**batch)), rtol=1e-5, atol=1e-6)


@every_registered
def test_auto_classes_know_the_config_and_build_the_head(head, tmp_path):
    config = head.model().config
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert type(auto_class(head.auto_class).from_config(loaded)) is head.cls


@every_head
def test_what_the_heads_of_an_architecture_share_goes_from_one_to_the_other(head, tmp_path):
    """From the head that `AutoModel` gives, and to it: nothing is left over, and what both have is loaded."""
    (whole,) = [other for other in CLASSES if other.cls is find_class(head.model_type, "AutoModel")]
    for one, other in ((whole, head), (head, whole)):
        model = one.model(seed=1)
        model.save_pretrained(tmp_path / one.auto_class)
        loaded, info = other.cls.from_pretrained(tmp_path / one.auto_class, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["mismatched_keys"], info
        given, taken = model.state_dict(), loaded.state_dict()
        shared = given.keys() & taken.keys()
        assert shared and shared.isdisjoint(info["missing_keys"])
        assert all(torch.equal(given[name], taken[name]) for name in shared)


def find_class(model_type: str, auto: str) -> type:
    """The class of an Auto class."""
    return next(head.cls for head in REGISTERED if (head.model_type, head.auto_class) == (model_type, auto))


@every(ARCHITECTURES)
def test_a_saved_processor_loads_through_auto_processor(head, tmp_path):
    processor = tiny_processor(head.model_type)
    processor.save_pretrained(tmp_path)
    # AutoProcessor finds the class by config.json, which a model saves into the same folder
    head.config().save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    inputs = {"images": Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 60).convert("RGB")}
    if "tokenizer" in processor.get_attributes():
        inputs["text"] = "a red dog"
    ours, theirs = processor(**inputs), loaded(**inputs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_head
def test_a_model_reads_what_its_processor_makes(head):
    model, processor = head.model(), tiny_processor(head.model_type)
    inputs = {}
    if head.images:
        inputs["images"] = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 60).convert("RGB")
    if head.takes("input_ids"):
        inputs["text"] = "a red dog"
    made = processor(**inputs)
    made |= {name: made["pixel_values"] for name in head.images if name not in made}
    for value in tensors(model(**made)).values():
        assert value.isfinite().all()


@every_build
def test_eager_equals_sdpa(head):
    model = head.model()
    batch = pad(tiny_batch(model), 3, "right")
    assert model.config._attn_implementation == "sdpa"
    sdpa = tensors(model(**batch))
    model.set_attn_implementation("eager")
    assert_close(tensors(model(**batch)), sdpa)


@every(WITH_TEXT)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_token(head, attention, side):
    """Nor anything else. A text tower whose positions count slots may refuse padding on the left, in words."""
    model = head.model()
    model.set_attn_implementation(attention)
    batch = tiny_batch(model)
    padded = pad(batch, 5, side)
    expected = tensors(model(**batch))
    try:
        outputs = tensors(model(**padded))
    except ValueError as error:
        assert side == "left" and "attention_mask has padding on the left" in str(error)
        return
    for name, value in expected.items():
        if value.shape[:2] == batch["input_ids"].shape:
            expected[name] = of_real_tokens(value, batch["attention_mask"])
            outputs[name] = of_real_tokens(outputs[name], padded["attention_mask"])
    assert_close(outputs, expected)


@every_build
def test_a_batch_equals_its_rows_alone(head):
    model = head.model()
    batch = tiny_batch(model, images=3)
    together = tensors(model(**batch))
    for i in range(3):
        for name, value in tensors(model(**rows(batch, i, i + 1))).items():
            # of a matrix that compares all rows with all, the row's own entry
            own = tuple(slice(i, i + 1) if n == 3 else slice(None) for n in together[name].shape[: value.ndim])
            own = [where if value.shape[d] == 1 else slice(None) for d, where in enumerate(own)]
            atol = 1e-5 * max(1.0, together[name].abs().max().item())
            torch.testing.assert_close(together[name][tuple(own)], value, rtol=1e-4, atol=atol, msg=name)


@every(FUSED)
def test_several_texts_an_image_equal_the_image_repeated(head):
    model = head.model()
    batch = tiny_batch(model, images=2, texts=3)
    repeated = {**batch, **{name: batch[name].repeat_interleave(3, dim=0) for name in head.images}}
    ours, theirs = tensors(model(**batch)), tensors(model(**repeated))
    of_texts = [name for name, value in ours.items() if len(value) == 6]
    assert of_texts
    for name in of_texts:
        torch.testing.assert_close(
            ours[name], theirs[name][:, ::3] if name == "logits_per_text" else theirs[name], rtol=1e-4, atol=1e-5
        )


@every_build
def test_outputs_depend_on_every_input(head):
    model = head.model()
    one, other = tiny_batch(model), tiny_batch(model, seed=1)
    plain = tensors(model(**one))
    for changed in [name for name in one if name != "attention_mask"]:
        outputs = tensors(model(**{**one, changed: other[changed]}))
        assert not all(torch.allclose(outputs[name], value, atol=1e-2) for name, value in plain.items()), changed


@every_build
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_finite_and_close(head, dtype, tolerance):
    model = head.model()
    batch = pad(tiny_batch(model), 3, "right")
    mask = batch.get("attention_mask")
    full = {name: of_real_tokens(value, mask) for name, value in tensors(model(**batch)).items()}
    half = {name: of_real_tokens(value, mask) for name, value in tensors(model.to(dtype)(**batch)).items()}
    assert any(value.dtype == dtype for value in half.values())
    for name, value in full.items():
        if value.is_floating_point():
            assert half[name].isfinite().all(), name
            allowed = tolerance * (1 if head.tower is None else 2)  # a random ResNet's rounding grows in what follows
            scale = max(value.norm(), 0.1 * value.numel() ** 0.5)  # cosines near 0 are differences of larger numbers
            assert (half[name].float() - value).norm() < allowed * scale, name


@every_head
def test_forward_exports_for_any_batch_and_length(head):
    model = head.model()
    example = tiny_batch(model, images=3)
    shapes = {name: {0: Dim.AUTO} if name in head.images else {0: Dim.AUTO, 1: Dim.AUTO} for name in example}
    program = torch.export.export(model, (), example, strict=False, dynamic_shapes=shapes)
    batch = pad(tiny_batch(model, images=2, length=9, seed=1), 2, "right")
    assert_close(tensors(program.module()(**batch)), tensors(model(**batch)))


@every_head
def test_outputs_come_as_a_tuple_too(head):
    model = head.model()
    batch = tiny_batch(model)
    outputs = model(**batch)
    plain = model(**batch, return_dict=False)
    assert type(plain) is tuple and len(plain) == len(outputs)
    assert torch.equal(plain[0], outputs[0])
