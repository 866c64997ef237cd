"""CLIP's text tower: which token stands for a text, what sees what, and what is refused."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import randomise

from hfvlm.encoders.clip_text import ClipTextTower
from hfvlm.encoders.configuration import ClipTextTowerConfig


END, LENGTH = 39, 10
SIZES = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}


def tower(**fields) -> ClipTextTower:
    torch.manual_seed(0)
    given = {"num_attention_heads": 3, "max_position_embeddings": LENGTH, "bos_token_id": 38, "eos_token_id": END}
    model = ClipTextTower(ClipTextTowerConfig(**{**SIZES, **given, **fields}))
    randomise(model)
    return model.eval()


@pytest.fixture
def ids() -> torch.Tensor:
    ids = torch.randint(1, 38, (2, 7), generator=torch.Generator().manual_seed(1))
    ids[0, 4] = ids[0, 6] = ids[1, 6] = END
    return ids


@pytest.mark.parametrize(
    "pooling, places", [("argmax", (4, 6)), ("eos", (4, 6)), ("first", (0, 0)), ("last", (LENGTH - 1, LENGTH - 1))]
)
def test_which_token_stands_for_a_text(pooling, places, ids):
    outputs = tower(pooling=pooling)(ids)
    expected = torch.stack([row[place] for row, place in zip(outputs.last_hidden_state, places)])
    assert torch.equal(outputs.pooler_output, expected)


def test_the_end_need_not_be_the_highest_id(ids):
    ids[ids == END] = 5
    ids[:, 2] = END
    by_id, by_height = tower(pooling="eos", eos_token_id=5)(ids), tower()(ids)
    assert torch.equal(by_id.pooler_output[0], by_id.last_hidden_state[0, 4])
    assert torch.equal(by_height.pooler_output, by_height.last_hidden_state[:, 2])


def test_no_token_sees_the_ones_after_it(ids):
    model, changed = tower(), ids.clone()
    changed[:, 5] = 7
    before, after = model(ids).last_hidden_state, model(changed).last_hidden_state
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_padding_behind_the_end_changes_nothing(ids):
    model = tower()
    for fill in (0, END, 3):
        longer = torch.nn.functional.pad(ids, (0, 3), value=fill)
        if fill == 3:  # nor does a mask that says so
            mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
        torch.testing.assert_close(model(longer).pooler_output, model(ids).pooler_output)
    torch.testing.assert_close(model(longer, mask).pooler_output, model(ids).pooler_output)


@pytest.mark.parametrize("fields", [{"causal": False}, {"causal": False, "pooling": "last"}, {"pooling": "last"}])
def test_where_padding_is_seen_texts_get_full_length(fields, ids):
    """Shorter texts, padded ones and those that another token pads are the same text."""
    model = tower(**fields)
    full = torch.nn.functional.pad(ids, (0, LENGTH - 7))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 2))
    foreign = torch.nn.functional.pad(ids, (0, 2), value=END)
    expected = model(full)
    assert expected.last_hidden_state.shape[1] == LENGTH
    for outputs in (model(ids), model(full), model(foreign, mask)):
        torch.testing.assert_close(outputs.pooler_output, expected.pooler_output)
    assert not torch.allclose(model(foreign).pooler_output, expected.pooler_output)
    other = tower(**fields, pad_token_id=5)(ids).pooler_output
    assert not torch.allclose(other, expected.pooler_output)


def test_without_a_causal_mask_every_token_sees_all(ids):
    model, changed = tower(causal=False), ids.clone()
    changed[:, 5] = 7
    assert not torch.allclose(model(ids).last_hidden_state[:, 0], model(changed).last_hidden_state[:, 0])


def test_bad_input_is_named(ids):
    model = tower()
    longer = ids.repeat(1, 2)
    for call, named in (
        ((longer,), "the text has 14 tokens, this model reads 10"),
        ((ids[0],), r"input_ids must have shape \[batch, length\], got \[7\]"),
        ((ids, torch.ones(2, 5)), r"attention_mask \[2, 5\] must cover the 7 tokens"),
        ((ids, torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 2)), "padding on the left"),
    ):
        with pytest.raises(ValueError, match=named):
            model(*call)
    with pytest.raises(StrictDataclassError, match="pooling must be one of argmax, eos, first, last; got 'mean'"):
        tower(pooling="mean")
    with pytest.raises(StrictDataclassError, match="pooling 'eos' needs one eos_token_id"):
        tower(pooling="eos", eos_token_id=[1, 2])


@pytest.mark.parametrize("pooling", ["argmax", "eos", "first", "last"])
def test_masks_of_other_devices_are_not_waited_for(pooling, ids):
    """A meta tensor has no numbers to wait for."""
    outputs = tower(pooling=pooling).to("meta")(ids.to("meta"), torch.ones_like(ids, device="meta"))
    assert outputs.pooler_output.shape == (2, 24)


def test_a_fresh_tower_has_the_released_codes_scale():
    torch.manual_seed(0)
    config = ClipTextTowerConfig(hidden_size=256, num_attention_heads=4, num_hidden_layers=3, intermediate_size=1024)
    model = ClipTextTower(config)
    branch = 256**-0.5 * 6**-0.5
    for weight, std in (
        (model.token_embedding.weight, 0.02),
        (model.position_embedding, 0.01),
        (model.blocks[1].attn.qkv.weight, 256**-0.5),
        (model.blocks[1].attn.proj.weight, branch),
        (model.blocks[1].mlp.fc1.weight, 512**-0.5),
        (model.blocks[1].mlp.fc2.weight, branch),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("wrong", [519, -100])
def test_ids_of_another_vocabulary_are_named(ids, wrong):
    ids[1, 2] = wrong
    with pytest.raises(ValueError, match=f"id {wrong}, but vocab_size is 40: the processor is another model's"):
        tower()(ids)


def test_padding_that_is_replaced_may_have_any_id(ids):
    model, mask = tower(causal=False, pooling="first"), torch.ones_like(ids)
    mask[:, 5:] = 0
    expected = model(ids, attention_mask=mask).pooler_output
    ids[:, 5:] = -100
    assert torch.equal(model(ids, attention_mask=mask).pooler_output, expected)
