"""The key-rule engine: every kind of rule both ways, and everything that may not fit."""

import pytest
import torch

from hfvlm.conversion.rules import Drop, Fresh, Fuse, KeyMismatch, Rename, Split, Transpose, Twin, apply, invert


RULES = (
    Rename(("words", "scores"), ("embed", "head")),
    Fuse(("blocks.{i}.q.{p}", "blocks.{i}.k.{p}"), "layers.{i}.qk.{p}"),
    Split("blocks.{i}.kv", ("layers.{i}.k", "layers.{i}.v")),
    Rename("blocks.{i}.mlp.{*rest}", "layers.{i}.mlp.{*rest}"),
    Drop("numbers", "counted when needed"),
    Fresh("extra.{p}", "learned later"),
)


def source() -> dict[str, torch.Tensor]:
    words = torch.randn(4, 2)
    tensors = {"words": words, "scores": words.clone(), "numbers": torch.arange(3)}
    for i in range(2):
        tensors |= {f"blocks.{i}.{name}": torch.randn(2, 3) for name in ("q.weight", "k.weight")}
        tensors |= {f"blocks.{i}.{name}": torch.randn(2) for name in ("q.bias", "k.bias", "mlp.fc.norm.bias")}
        tensors[f"blocks.{i}.kv"] = torch.randn(6, 2)
    return tensors


def shapes() -> dict[str, torch.Size]:
    return {
        **{key: value.shape for key, value in apply(RULES, source()).tensors.items()},
        "extra.bias": torch.Size([1]),
    }


def mismatch(tensors) -> KeyMismatch:
    with pytest.raises(KeyMismatch) as caught:
        apply(RULES, tensors, shapes())
    return caught.value


def test_each_rule_puts_its_tensors_in_place():
    tensors = source()
    converted, dropped = apply(RULES, tensors, shapes())
    assert torch.equal(converted["embed"], tensors["words"]) and torch.equal(converted["head"], tensors["words"])
    fused = torch.cat([tensors["blocks.1.q.weight"], tensors["blocks.1.k.weight"]])
    assert torch.equal(converted["layers.1.qk.weight"], fused)
    assert torch.equal(converted["layers.0.v"], tensors["blocks.0.kv"][3:])
    assert torch.equal(converted["layers.1.mlp.fc.norm.bias"], tensors["blocks.1.mlp.fc.norm.bias"])
    assert dropped == {"numbers": "counted when needed"}


def test_round_trip_is_the_identity():
    tensors = source()
    converted = apply(RULES, tensors).tensors
    back = apply(invert(RULES), converted, {key: value.shape for key, value in tensors.items()}).tensors
    del tensors["numbers"]
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    assert invert(invert(RULES)) == RULES


def test_what_started_fresh_is_dropped_on_the_way_back():
    converted = {**apply(RULES, source()).tensors, "extra.bias": torch.zeros(1)}
    assert apply(invert(RULES), converted).dropped == {"extra.bias": "learned later"}


def test_a_copy_may_be_missing_but_not_differ():
    tensors = source()
    del tensors["words"]
    assert torch.equal(apply(RULES, tensors, shapes()).tensors["embed"], tensors["scores"])
    tensors["scores"] = torch.full((4, 2), float("nan"))
    tensors["words"] = tensors["scores"].clone()
    assert apply(RULES, tensors, shapes()).tensors["head"].isnan().all()
    tensors["words"] = torch.zeros(4, 2)
    error = mismatch(tensors)
    assert error.unequal == [("words", "scores")] and "words, scores" in str(error)


def test_every_misfit_is_listed_at_once():
    tensors = source()
    del tensors["blocks.0.k.weight"], tensors["blocks.1.mlp.fc.norm.bias"]
    tensors |= {"stranger": torch.zeros(1), "blocks.2.kv": torch.zeros(6, 2)}
    tensors["blocks.1.q.bias"] = torch.zeros(5)
    tensors["blocks.1.kv"] = torch.zeros(6, 7)
    error = mismatch(tensors)
    assert sorted(error.missing) == ["blocks.0.k.weight", "blocks.1.mlp.fc.norm.bias"]
    assert sorted(error.extra) == ["blocks.2.kv", "stranger"]
    assert error.misshaped == {"blocks.1.q.bias": ([5], [2]), "blocks.1.kv": ([6, 7], [6, 2])}
    for line in ("stranger", "blocks.0.k.weight", "blocks.1.q.bias: is [5], must be [2]", "2 missing keys"):
        assert line in str(error)


def test_a_group_that_is_missing_as_a_whole_is_listed_by_its_source_keys():
    tensors = {key: value for key, value in source().items() if not key.startswith("blocks.1.") and key != "words"}
    del tensors["scores"]
    missing = mismatch(tensors).missing
    assert "words" in missing and "scores" not in missing
    assert {"blocks.1.q.weight", "blocks.1.k.weight", "blocks.1.kv"} <= set(missing)


def test_a_key_of_the_model_that_no_rule_fills_is_an_error():
    with pytest.raises(KeyMismatch, match="new.weight.*no rule"):
        apply(RULES, source(), {**shapes(), "new.weight": torch.Size([1])})


def test_the_first_rule_that_matches_takes_a_key():
    rules = (Rename("a.{p}", "first.{p}"), Drop("{*rest}", "unwanted"))
    converted, dropped = apply(rules, {"a.b": torch.zeros(1), "c": torch.zeros(1)})
    assert list(converted) == ["first.b"] and list(dropped) == ["c"]


def test_fit_is_asked_only_where_the_shape_differs():
    def fit(tensor, shape):
        return torch.full(shape, 7.0)

    rules = (Rename("table", "table", fit=fit),)
    table = torch.zeros(2, 2)
    assert apply(rules, {"table": table}, {"table": torch.Size([2, 2])}).tensors["table"] is table
    assert apply(rules, {"table": table}, {"table": torch.Size([3, 2])}).tensors["table"].tolist() == [[7.0] * 2] * 3


def test_long_lists_are_cut_in_the_message_only():
    error = mismatch({**source(), **{f"stranger{i}": torch.zeros(1) for i in range(80)}})
    assert len(error.extra) == 80 and "... and 30 more" in str(error)


def test_a_twin_must_be_equal_and_a_matrix_can_be_turned():
    rules = (Rename("one", "ours"), Twin("other.{p}", "one"), Transpose("table", "rows"))
    tensors = {"one": torch.ones(2), "other.copy": torch.ones(2), "table": torch.randn(2, 3)}
    converted, dropped = apply(rules, tensors, {"ours": torch.Size([2]), "rows": torch.Size([3, 2])})
    assert torch.equal(converted["rows"], tensors["table"].t()) and dropped == {"other.copy": "stored twice"}
    assert torch.equal(apply(invert(rules), converted).tensors["table"], tensors["table"])
    with pytest.raises(KeyMismatch, match="one, other.copy"):
        apply(rules, {**tensors, "other.copy": torch.zeros(2)})
    with pytest.raises(KeyMismatch, match="1 missing keys:\n  one"):
        apply(rules[1:], {"other.copy": torch.ones(2)})
