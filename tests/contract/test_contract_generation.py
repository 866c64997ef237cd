"""What every head that writes text promises: stock `generate()`, the image read once, every way to the same ids."""

import pytest
import torch
from contract.heads import ENCODER_DECODERS, GENERATIVE, SHARING, every, rows, tiny_batch, written_by
from tiny import tiny_text_tokenizer
from transformers import GenerationMixin, TextIteratorStreamer
from transformers.cache_utils import EncoderDecoderCache

from hfvlm.generation import SharedMemoryMixin
from hfvlm.nn.attention import CrossAttention


pytestmark = pytest.mark.contract
every_writer = every(GENERATIVE)
every_encoder_decoder = every(ENCODER_DECODERS)
every_sharer = every(SHARING)
strategies = pytest.mark.parametrize("beams", [1, 3])

LENGTH = {"max_new_tokens": 10, "min_new_tokens": 10}


def images(model: torch.nn.Module, count: int = 2) -> torch.Tensor:
    return tiny_batch(model, images=count)["pixel_values"]


def asked(model: torch.nn.Module, count: int = 2) -> dict[str, torch.Tensor]:
    """What there is to be written about: images, and a question to each if the model reads one; all of one length but
    the first, which is padded."""
    batch = tiny_batch(model, images=count)
    for name in written_by(type(model).forward):
        del batch[name]
    if "attention_mask" in batch and count > 1:
        batch["attention_mask"][0, -3:] = 0
    return batch


def padded_prompts(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Prompts of 4, 3 and 1 tokens, padded on the left to one batch, and each alone."""
    written, mask = written_by(type(model).forward)
    ids = tiny_batch(model, images=3)[written]
    alone = [ids[i : i + 1, :length] for i, length in enumerate((4, 3, 1))]
    rows = [torch.nn.functional.pad(row, (4 - row.shape[1], 0)) for row in alone]
    masks = [torch.nn.functional.pad(torch.ones_like(row), (4 - row.shape[1], 0)) for row in alone]
    return {written: torch.cat(rows), mask: torch.cat(masks)}, alone


@every_writer
def test_generate_is_the_stock_one(head):
    assert head.cls.generate is GenerationMixin.generate


@every_writer
def test_greedy_ids_are_the_best_of_the_logits(head):
    model = head.model()
    ids = model.generate(**asked(model), max_new_tokens=10)
    logits = model(**asked(model), **{head.written[0]: ids}).logits[:, :-1]
    written = ids[:, 1:] != model.generation_config.pad_token_id
    assert (ids[:, 0] == model.config.text_config.bos_token_id).all()
    assert torch.equal(logits.argmax(-1)[written], ids[:, 1:][written])


@every_writer
@strategies
def test_eager_equals_sdpa(head, beams):
    model = head.model()
    sdpa = model.generate(**asked(model), num_beams=beams, **LENGTH)
    model.set_attn_implementation("eager")
    assert torch.equal(model.generate(**asked(model), num_beams=beams, **LENGTH), sdpa)


@every_writer
@strategies
def test_every_cache_writes_the_same(head, beams):
    model = head.model()
    options = {**asked(model), "num_beams": beams, **LENGTH}
    ids = model.generate(**options)
    assert torch.equal(model.generate(**options, use_cache=False), ids)
    assert torch.equal(model.generate(**options, cache_implementation="static"), ids)


@every_writer
@strategies
def test_a_batch_writes_what_each_image_gets_alone(head, beams):
    model = head.model()
    batch = asked(model, 3)
    ids = model.generate(**batch, num_beams=beams, **LENGTH)
    alone = [model.generate(**rows(batch, i, i + 1), num_beams=beams, **LENGTH) for i in range(3)]
    assert torch.equal(ids, torch.cat(alone))


@every_writer
@strategies
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padded_prompts_are_continued_as_each_alone(head, beams, cache):
    model = head.model()
    batch = asked(model, 3)
    prompts, alone = padded_prompts(model)
    options = {"num_beams": beams, "cache_implementation": cache, **LENGTH}
    ids = model.generate(**batch, **prompts, **options)
    assert torch.equal(ids[:, :4], prompts[head.written[0]])
    for i, row in enumerate(alone):
        expected = model.generate(**rows(batch, i, i + 1), **{head.written[0]: row}, **options)
        assert torch.equal(ids[i, 4:], expected[0, row.shape[1] :]), i


@every_encoder_decoder
@strategies
@pytest.mark.parametrize("shortest", [1, 4], ids=["all padded", "one padded"])
def test_a_missing_start_token_goes_behind_the_padding(head, beams, shortest):
    model = head.model()
    pixel_values = images(model, 2)
    tokens = tiny_batch(model, images=2)["input_ids"][:, 1:5]
    alone = [tokens[:1, :2], tokens[1:, :shortest]]
    rows = [torch.nn.functional.pad(row, (4 - row.shape[1], 0)) for row in alone]
    mask = torch.cat([(row != 0).long() for row in rows])
    options = {"num_beams": beams, **LENGTH}
    ids = model.generate(pixel_values=pixel_values, input_ids=torch.cat(rows), attention_mask=mask, **options)
    start = torch.tensor([[model.config.text_config.bos_token_id]])
    for i, row in enumerate(alone):
        prompt = torch.cat([start, row], dim=1)
        expected = model.generate(pixel_values=pixel_values[i : i + 1], input_ids=prompt, **options)
        assert torch.equal(ids[i, 5 - prompt.shape[1] :], expected[0]), i


@every_encoder_decoder
def test_some_prompts_with_a_start_token_and_some_without(head):
    model = head.model()
    prompts, _ = padded_prompts(model)
    prompts["input_ids"][1, 1] = 9  # the second one's first token
    with pytest.raises(ValueError, match="some prompts in input_ids begin with the start token and some do not"):
        model.generate(pixel_values=images(model, 3), **prompts, **LENGTH)
    with pytest.raises(ValueError, match=r"attention_mask \[3, 3\] must have the shape of input_ids \[3, 4\]"):
        model.generate(
            pixel_values=images(model, 3),
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"][:, 1:],
        )


@every_encoder_decoder
def test_prompts_by_the_stock_name(head):
    model = head.model()
    pixel_values = images(model, 2)
    prompts = tiny_batch(model, images=2, texts=2)["input_ids"][:, :3]
    for ids in (prompts, prompts[:, 1:]):
        expected = model.generate(pixel_values=pixel_values, input_ids=ids, **LENGTH)
        assert torch.equal(model.generate(pixel_values=pixel_values, decoder_input_ids=ids, **LENGTH), expected)


@every_sharer
def test_training_with_gradient_checkpointing_does_not_write(head):
    model = head.model()
    batch = asked(model)
    expected = model.generate(**batch, **LENGTH)
    model.gradient_checkpointing_enable()
    assert torch.equal(model.generate(**batch, **LENGTH), expected)
    model.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) before it, or pass use_cache=False"):
        model.generate(**batch, **LENGTH)
    assert torch.equal(model.generate(**batch, use_cache=False, **LENGTH), expected)


@every_encoder_decoder
@strategies
def test_several_prompts_an_image_are_continued_as_with_the_image_repeated(head, beams):
    model = head.model()
    pixel_values = images(model, 2)
    prompts = tiny_batch(model, images=2, texts=3)["input_ids"][:, :3]
    ids = model.generate(pixel_values=pixel_values, input_ids=prompts, num_beams=beams, **LENGTH)
    repeated = pixel_values.repeat_interleave(3, dim=0)
    assert torch.equal(ids, model.generate(pixel_values=repeated, input_ids=prompts, num_beams=beams, **LENGTH))


@every_sharer
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_the_image_is_encoded_and_projected_once(head, options):
    model = head.model()
    encoded, projected = [], []
    for tower in {model.vision_model, model.get_encoder()}:
        tower.register_forward_hook(lambda *_: encoded.append(1))
    layers = [module for module in model.modules() if isinstance(module, CrossAttention)]
    layers = [layer for layer in layers if layer.kv.weight.requires_grad]  # no momentum copy's
    for layer in layers:
        layer.kv.register_forward_hook(lambda _, inputs, __: projected.append(len(inputs[0])))
    outputs = model.generate(**asked(model), return_dict_in_generate=True, **options, **LENGTH)
    assert len(encoded) == len({model.vision_model, model.get_encoder()})
    assert projected == [2] * len(layers)  # once a layer, of the two images or questions
    cache = outputs.past_key_values
    assert isinstance(cache, EncoderDecoderCache)
    for mine, cross in zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True):
        assert cross.keys.shape[0] == cross.values.shape[0] == 2
        assert mine.keys.shape[0] == 2 * max(options.values(), key=int, default=1)


@every_sharer
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_shared_images_write_what_repeated_ones_do(head, options, monkeypatch):
    """The stock way, which repeats the encoder's output and reorders the image's keys with the beams, as reference."""
    model = head.model()
    shared = model.generate(**asked(model), **options, **LENGTH)
    for mixin in head.cls.__mro__:
        for name in ("_expand_inputs_for_generation", "_reorder_cache"):
            if issubclass(mixin, SharedMemoryMixin) and name in vars(mixin):
                monkeypatch.delattr(mixin, name)
    assert torch.equal(model.generate(**asked(model), **options, **LENGTH), shared)


@every_writer
def test_several_sequences_an_image(head):
    model = head.model()
    best = model.generate(**asked(model), num_beams=4, **LENGTH)
    several = model.generate(**asked(model), num_beams=4, num_return_sequences=3, **LENGTH)
    assert several.shape == (6, 11)
    assert torch.equal(several[::3], best)
    assert len({tuple(row) for row in several[:3].tolist()}) == 3


@every_writer
def test_sampling_is_reproducible_and_varied(head):
    model = head.model()

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(**asked(model), do_sample=True, num_return_sequences=3, **LENGTH)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert len({tuple(row) for row in sample(0).tolist()}) > 3


@every_writer
def test_text_streams_out(head):
    model = head.model()
    tokenizer = tiny_text_tokenizer(model.config)
    streamer = TextIteratorStreamer(tokenizer, timeout=10)
    ids = model.generate(**asked(model, 1), streamer=streamer, **LENGTH)
    chunks = list(streamer)
    assert len(chunks) > 5
    assert "".join(chunks).strip() == tokenizer.decode(ids[0]).strip()


@every_writer
def test_a_draft_model_changes_nothing_but_the_speed(head):
    model, draft = head.model(), head.model(seed=1)
    options = {**asked(model, 1), **LENGTH}
    ids = model.generate(**options)
    for helper in (draft, model):
        assert torch.equal(model.generate(**options, assistant_model=helper), ids)
    assert torch.equal(model.generate(**options, prompt_lookup_num_tokens=2), ids)


@every_sharer
def test_encoded_images_can_be_given(head):
    model = head.model()
    batch = asked(model)
    expected = model.generate(**batch, num_beams=3, **LENGTH)
    encode = getattr(model, "encode_questions", model.get_encoder())
    read = {name: value for name, value in batch.items() if name == "attention_mask"}
    ids = model.generate(encoder_outputs=encode(**batch), **read, num_beams=3, **LENGTH)
    assert torch.equal(ids, expected)


@every_writer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates(head, dtype):
    model = head.model().to(dtype)
    outputs = model.generate(**asked(model), num_beams=2, return_dict_in_generate=True, output_scores=True, **LENGTH)
    assert outputs.sequences.shape == (2, 11)
    assert outputs.sequences_scores.isfinite().all()
