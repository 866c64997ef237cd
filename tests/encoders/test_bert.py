"""The BERT tower as an encoder, with cross-attention, and as a causal decoder."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hfvlm.encoders.bert import BertLmHead, BertTower
from hfvlm.encoders.configuration import BertTowerConfig


close = {"rtol": 1e-4, "atol": 1e-5}


def tower(pairing: str | None = None, **kwargs) -> BertTower:
    torch.manual_seed(0)
    fields = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 16,
    }
    model = BertTower(BertTowerConfig(**{**fields, **kwargs}), pairing=pairing).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def ids(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(0))


def changed(model: BertTower, at: int, **inputs) -> list[bool]:
    """Which positions' features depend on the token at position `at`."""
    one = ids(1)
    other = one.clone()
    other[0, at] = (other[0, at] + 1) % 50
    before, after = (model(x, **inputs).last_hidden_state[0] for x in (one, other))
    return [not torch.allclose(a, b, **close) for a, b in zip(before, after)]


def test_an_encoder_sees_both_ways_and_a_decoder_only_back():
    assert changed(tower(), at=3) == [True] * 7
    assert changed(tower(is_decoder=True), at=3) == [False] * 3 + [True] * 4


def test_norms_follow_the_residuals():
    model = tower(num_hidden_layers=1, encoder_hidden_size=10)
    memory, layer = torch.randn(2, 4, 10), model.layers[0]
    hidden = (
        model.embeddings.word(ids()) + model.embeddings.position.weight[:7] + model.embeddings.token_type.weight[0]
    )
    hidden = model.embeddings.norm(hidden)
    hidden = layer.attention_norm(hidden + layer.attention(hidden)[0])
    hidden = layer.cross_attention_norm(hidden + layer.cross_attention(hidden, memory)[0])
    hidden = layer.mlp_norm(hidden + layer.mlp(hidden))
    torch.testing.assert_close(model(ids(), encoder_hidden_states=memory).last_hidden_state, hidden, **close)


def test_token_types_are_optional():
    assert tower(type_vocab_size=0).embeddings.token_type is None
    model = tower()
    plain = model(ids()).last_hidden_state
    torch.testing.assert_close(model(ids(), token_type_ids=torch.zeros_like(ids())).last_hidden_state, plain)
    assert not torch.allclose(model(ids(), token_type_ids=torch.ones_like(ids())).last_hidden_state, plain)


def test_embeddings_can_be_given():
    model = tower()
    embedded = model.get_input_embeddings()(ids())
    torch.testing.assert_close(model(inputs_embeds=embedded).last_hidden_state, model(ids()).last_hidden_state)
    for both in ({}, {"input_ids": ids(), "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one of input_ids, inputs_embeds and hidden_states"):
            model(**both)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_padding_on_either_side_takes_no_position(is_decoder):
    model = tower(is_decoder=is_decoder)
    plain = model(ids()).last_hidden_state
    for side in ((3, 0), (0, 3), (2, 1)):
        padded = torch.nn.functional.pad(ids(), side)
        mask = torch.nn.functional.pad(torch.ones_like(ids()), side)
        features = model(padded, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(features[mask.bool()].view_as(plain), plain, **close)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "another"])
@pytest.mark.parametrize("pairing", [None, "alternate", "merge"])
def test_one_position_is_what_it_is_among_all(pairing, implementation, monkeypatch):
    if implementation == "another":
        monkeypatch.setattr("hfvlm.encoders.bert.QUERY_MASKS", ())
    model = tower(pairing=pairing, encoder_hidden_size=10)
    model.set_attn_implementation("eager" if implementation == "eager" else "sdpa")
    memory = torch.randn(*([2] if pairing else []), 2, 4, 10)
    for side in ((0, 2), (2, 0), (0, 0)):
        padded = torch.nn.functional.pad(ids(), side)
        mask = (padded != 0).long()
        for at in (mask.argmax(dim=-1), mask.argmax(dim=-1) + 3):
            for seen in ({}, {"encoder_hidden_states": memory}):
                whole = model(padded, mask, **seen).last_hidden_state
                one = model(padded, mask, only_position=at, **seen).last_hidden_state
                assert one.shape == (2, 1, whole.shape[2])
                torch.testing.assert_close(one[:, 0], whole[torch.arange(2), at], **close)


def test_one_position_of_a_causal_text_is_refused():
    with pytest.raises(ValueError, match="only_position is for texts that are read in both directions"):
        tower(is_decoder=True)(ids(), only_position=torch.zeros(2, dtype=torch.long))


def test_a_tower_with_cross_attention_works_without_a_memory():
    """As BLIP's text encoder does for features of texts alone."""
    model, memory = tower(encoder_hidden_size=10), torch.randn(2, 4, 10)
    alone = model(ids()).last_hidden_state
    plain = tower()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "cross_attention" not in k})
    torch.testing.assert_close(plain(ids()).last_hidden_state, alone)
    assert not torch.allclose(model(ids(), encoder_hidden_states=memory).last_hidden_state, alone)


def test_a_memory_needs_cross_attention():
    with pytest.raises(ValueError, match="encoder_hidden_states need a tower with cross-attention"):
        tower()(ids(), encoder_hidden_states=torch.randn(2, 4, 10))


def test_masked_memory_is_not_read():
    model, memory = tower(encoder_hidden_size=10), torch.randn(2, 6, 10)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[:, 4:] = 0
    cut = model(ids(), encoder_hidden_states=memory[:, :4]).last_hidden_state
    masked = model(ids(), encoder_hidden_states=memory, encoder_attention_mask=mask).last_hidden_state
    torch.testing.assert_close(masked, cut, **close)


def test_texts_of_an_image_share_a_masked_memory():
    model, memory = tower(encoder_hidden_size=10, is_decoder=True), torch.randn(2, 6, 10)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 3:] = 0
    shared = model(ids(6), encoder_hidden_states=memory, encoder_attention_mask=mask)
    repeated = model(
        ids(6),
        encoder_hidden_states=memory.repeat_interleave(3, 0),
        encoder_attention_mask=mask.repeat_interleave(3, 0),
    )
    torch.testing.assert_close(shared.last_hidden_state, repeated.last_hidden_state, **close)


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 1, 3], [7]])
def test_a_cached_decoder_equals_an_uncached_one(chunks):
    model, memory = tower(encoder_hidden_size=10, is_decoder=True), torch.randn(2, 4, 10)
    whole = model(ids(), encoder_hidden_states=memory).last_hidden_state
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    pieces = [
        model(piece, encoder_hidden_states=memory if i == 0 else None, past_key_values=cache).last_hidden_state
        for i, piece in enumerate(ids().split(chunks, dim=1))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **close)


def test_texts_beyond_the_position_table_are_refused_with_a_cache_too():
    model = tower(is_decoder=True)
    cache = DynamicCache()
    model(ids(1, 15), past_key_values=cache)
    model(ids(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"has 17 tokens, this model reads 16 \(max_position_embeddings\)"):
        model(ids(1, 1), past_key_values=cache)


def test_the_lm_head_is_dense_activation_norm_decoder():
    torch.manual_seed(0)
    head = BertLmHead(BertTowerConfig(vocab_size=50, hidden_size=24, num_attention_heads=3))
    hidden = torch.randn(2, 3, 24)
    expected = head.norm(torch.nn.functional.gelu(head.dense(hidden))) @ head.decoder.weight.T + head.decoder.bias
    torch.testing.assert_close(head(hidden), expected, **close)
