"""Heads that answer questions: several answers a question, ranking, the teacher, and what generation shares."""

import pytest
import torch
from contract.heads import ANSWERERS, Head, assert_close, every, state_of, tiny_batch
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_model
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from hfvlm import AlbefForVisualQuestionAnswering, answer_ranking
from hfvlm.losses import answers as answers_module
from hfvlm.losses.answers import answer_log_likelihoods, answer_losses


QUESTION = ("pixel_values", "input_ids", "attention_mask")


def asked(model: nn.Module, questions: int = 3, images: int = 3) -> dict[str, torch.Tensor]:
    batch = tiny_batch(model, images=images, texts=questions // images)
    batch["attention_mask"][0, 9:] = 0
    return {name: batch[name] for name in QUESTION}


def answer_list(model: nn.Module, count: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers of 1 to 5 tokens behind the start token, padded."""
    ids = tiny_batch(model, images=count, length=6, seed=seed)["decoder_input_ids"]
    mask = (torch.arange(6)[None] < 2 + torch.arange(count)[:, None] % 5).long()
    return ids.masked_fill(mask == 0, model.config.text_config.pad_token_id), mask


@every(ANSWERERS)
def test_several_answers_a_question_are_its_weighted_sum(head):
    model = head.model()
    batch = asked(model)
    ids, mask = answer_list(model, 6)
    labels = ids.masked_fill(mask == 0, -100)
    counts, weights = torch.tensor([1, 2, 3]), torch.tensor([0.5, 1.0, 0.25, 0.125, 1.0, 2.0])
    options = {"labels": labels, "alpha": 0.0}
    together = model(**batch, **options, answer_counts=counts, answer_weights=weights)
    repeated = {name: value.repeat_interleave(counts, 0) for name, value in batch.items()}
    parts = [
        model(**{name: value[i : i + 1] for name, value in repeated.items()}, labels=labels[i : i + 1], alpha=0.0)
        for i in range(6)
    ]
    torch.testing.assert_close(together.loss, sum(w * part.loss for w, part in zip(weights, parts)) / 3)
    assert_close({"logits": together.logits}, {"logits": torch.cat([part.logits for part in parts])})
    assert together.loss_lm is together.loss
    # a question may have no answer, and its answers may be as many as every other's
    none = model(**batch, labels=labels[:3], alpha=0.0, answer_counts=torch.tensor([0, 3, 0]))
    assert none.loss.isfinite()
    even = model(**batch, **options, answer_counts=torch.tensor([2, 2, 2]))
    torch.testing.assert_close(model(**batch, **options).loss, even.loss)


@every(ANSWERERS)
@pytest.mark.parametrize("rows", [512, 4])
def test_ranking_equals_reading_every_answer(head, rows, monkeypatch):
    monkeypatch.setattr(answer_ranking, "ROWS_AT_ONCE", rows)
    model = head.model()
    batch = asked(model)
    ids, mask = answer_list(model, 7)
    ranking = model.rank_answers(**batch, answer_ids=ids, answer_mask=mask, k=4)
    assert ranking.answers.shape == ranking.scores.shape == (3, 4)
    labels = ids.masked_fill(mask == 0, -100)
    for i in range(3):
        question = {name: value[i : i + 1] for name, value in batch.items()}
        start = model(**question, decoder_input_ids=ids[:1, :1]).logits[0, 0].softmax(-1)
        near = start[ids[:, 1]]
        assert set(ranking.candidates[i].tolist()) == set(near.topk(4).indices.tolist())
        logits = model(**question, decoder_input_ids=ids, answer_counts=torch.tensor([7])).logits
        likely = -answer_losses(logits, labels, model.config.label_smoothing)
        scores = likely[ranking.candidates[i]]
        if model.first_token_twice:
            scores = (scores + near[ranking.candidates[i]].log()).softmax(-1)
        best = scores.argsort(descending=True)
        assert torch.equal(ranking.answers[i], ranking.candidates[i][best])
        torch.testing.assert_close(ranking.scores[i], scores[best], rtol=1e-4, atol=1e-5)
    # the mask may be left out, k may be more than there are, and the questions may be encoded already
    more = model.rank_answers(**batch, answer_ids=ids, k=50)
    assert more.answers.shape == (3, 7)
    read = model.encode_questions(**batch)
    again = model.rank_answers(encoder_outputs=read, attention_mask=batch["attention_mask"], answer_ids=ids, k=50)
    assert torch.equal(again.answers, more.answers)


@every(ANSWERERS)
def test_ranking_while_training_with_checkpoints_is_the_same(head):
    """Checkpointed layers keep no cache."""
    model = head.model()
    ids, mask = answer_list(model, 5)
    asked_of = {**asked(model), "answer_ids": ids, "answer_mask": mask, "k": 3}
    expected = model.rank_answers(**asked_of)
    model.gradient_checkpointing_enable()
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    found = model.rank_answers(**asked_of)
    torch.testing.assert_close(found.log_likelihoods, expected.log_likelihoods, rtol=1e-4, atol=1e-5)
    ids[1, 0] += 1
    with pytest.raises(ValueError, match="answer_ids must all start with the same token"):
        model.rank_answers(**asked_of)


@every(ANSWERERS)
def test_questions_about_one_image_are_ranked_and_answered_as_with_it_repeated(head):
    model = head.model()
    batch = asked(model, questions=4, images=2)
    repeated = {**batch, "pixel_values": batch["pixel_values"].repeat_interleave(2, 0)}
    ids, mask = answer_list(model, 5)
    ours, theirs = (model.rank_answers(**inputs, answer_ids=ids, answer_mask=mask) for inputs in (batch, repeated))
    assert torch.equal(ours.answers, theirs.answers)
    options = {"max_new_tokens": 6, "num_beams": 3}
    assert torch.equal(model.generate(**batch, **options), model.generate(**repeated, **options))


@every(ANSWERERS)
def test_an_answer_may_be_begun(head):
    model = head.model()
    batch = asked(model)
    written = model.generate(**batch, max_new_tokens=8, min_new_tokens=8)
    begun = model.generate(**batch, decoder_input_ids=written[:, :4], max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(begun, written)
    with pytest.raises(ValueError, match="decoder_input_ids has 2 prompts for 3 questions; pass a multiple"):
        model.generate(**batch, decoder_input_ids=written[:2, :2])
    with pytest.raises(ValueError, match="'pixel_valus'"):
        model.generate(**batch, pixel_valus=batch["pixel_values"])


@every(ANSWERERS)
def test_words_are_resized_in_every_tower(head, tmp_path):
    model = head.model(momentum=None)
    model.resize_token_embeddings(70)
    assert model.lm_head.decoder.weight is model.text_decoder.embeddings.word.weight
    model.save_pretrained(tmp_path)
    loaded, info = head.cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert len(loaded.text_model.embeddings.word.weight) == len(loaded.lm_head.decoder.bias) == 70


def test_losses_of_no_learned_token_are_zero_with_a_gradient_path():
    logits = torch.randn(3, 4, 9, requires_grad=True)
    labels = torch.tensor([[1, -100, -100, -100], [1, 2, 3, -100], [-100] * 4])
    losses = answer_losses(logits, labels, 0.1)
    assert losses[0] == losses[2] == 0 and losses[1] > 0
    answer_losses(logits, torch.full((3, 4), -100)).sum().backward()
    assert logits.grad is not None and not logits.grad.any()


def test_likelihoods_are_minus_the_losses_whatever_goes_at_once(monkeypatch):
    monkeypatch.setattr(answers_module, "TOKENS_AT_ONCE", 2)
    torch.manual_seed(0)
    states, labels, head = torch.randn(3, 4, 8), torch.randint(0, 9, (3, 4)), nn.Linear(8, 9)
    labels[1, 2:] = -100
    likely = answer_log_likelihoods(states[:, :-1], labels[:, 1:], head, 0.1)
    torch.testing.assert_close(likely, -answer_losses(head(states), labels, 0.1))


def test_albefs_teacher_is_listened_to_and_follows(tmp_path):
    model = tiny_model("albef", "AutoModelForVisualQuestionAnswering", alpha_steps=4)
    batch = asked(model)
    labels = answer_list(model, 3)[0].masked_fill(answer_list(model, 3)[1] == 0, -100)
    losses = [model(**batch, labels=labels, alpha=alpha).loss for alpha in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(losses[1], (losses[0] + losses[2]) / 2)
    assert not torch.allclose(losses[0], losses[2])
    torch.testing.assert_close(model(**batch, labels=labels).loss, losses[0])  # the ramp starts at 0
    before = model.teacher_lm_head.dense.weight.clone()
    model.train()(**batch, labels=labels)
    assert model.teacher_step == 1 and not torch.equal(model.teacher_lm_head.dense.weight, before)
    words = model.teacher_text_decoder.embeddings.word.weight
    assert model.teacher_lm_head.decoder.weight is words and not words.requires_grad
    model.save_pretrained(tmp_path)
    loaded = AlbefForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert loaded.teacher_step == 1 and torch.equal(loaded.teacher_lm_head.decoder.weight, words)
    read = model.encode_questions(**batch)
    with pytest.raises(ValueError, match="the teacher reads the question itself: pass pixel_values and input_ids"):
        model(encoder_outputs=read, labels=labels, alpha=0.5)
    with pytest.raises(ValueError, match="the teacher has words of its own: resize with config.momentum=None"):
        model.resize_token_embeddings(70)


def test_a_teacher_that_is_not_there_has_no_say():
    for family, options in (("blip", {}), ("albef", {"momentum": None})):
        model = tiny_model(family, "AutoModelForVisualQuestionAnswering", **options)
        labels = answer_list(model, 3)[0]
        with pytest.raises(ValueError, match="alpha is 0.5, but .*there is no teacher|has no teacher to listen to"):
            model(**asked(model), labels=labels, alpha=0.5)


def test_the_decoder_has_the_layers_that_fuse_or_as_many_as_are_asked_for():
    assert len(tiny_model("albef", "AutoModelForVisualQuestionAnswering").text_decoder.layers) == 2
    model = tiny_model("albef", "AutoModelForVisualQuestionAnswering", decoder_layers=5)
    assert len(model.text_decoder.layers) == 5
    for cache in ("dynamic", "static"):
        ids = model.generate(**asked(model), num_beams=2, max_new_tokens=4, cache_implementation=cache)
        assert len(ids) == 3
    with pytest.raises(StrictDataclassError, match="decoder_layers must be positive, got 0"):
        tiny_model("albef", "AutoModelForVisualQuestionAnswering", decoder_layers=0)


def check_processes(rank: int, rendezvous: str, names: list[tuple[str, str]]) -> None:
    """Three questions a process, with 4 answers there and 6 here; the teacher, where there is one, has its say."""
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    torch.set_num_threads(1)
    counts = torch.tensor([2, 1, 1, 3, 1, 2])
    for name in names:
        head = Head(*name)
        model, alone = head.model().train(), head.model().train()
        batch = asked(model, 6, 6)
        ids, mask = answer_list(model, 10)
        labels, weights = ids.masked_fill(mask == 0, -100), torch.arange(1.0, 11.0) / 10
        answers = slice(0, 4) if rank == 0 else slice(4, 10)
        mine = {key: value[3 * rank : 3 * rank + 3] for key, value in {**batch, "answer_counts": counts}.items()}
        wrapped = DistributedDataParallel(model)  # kept: gradients are averaged while it lives
        loss = wrapped(**mine, labels=labels[answers], answer_weights=weights[answers]).loss
        loss.backward()
        whole = alone(**batch, labels=labels, answer_counts=counts, answer_weights=weights).loss
        whole.backward()
        both = loss.detach().clone()
        distributed.all_reduce(both)
        torch.testing.assert_close(both / 2, whole.detach())
        gradients = [{key: p.grad for key, p in one.named_parameters() if p.requires_grad} for one in (model, alone)]
        assert max(value.abs().max() for value in gradients[1].values()) > 1e-2, "there is something to compare"
        assert_close(*gradients, rtol=1e-3)
        assert_close(state_of(model), state_of(alone))
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    """Each has as many questions, however many answers: the loss and the gradients are the mean over questions."""
    names = [(head.model_type, head.auto_class) for head in ANSWERERS]
    multiprocessing.spawn(check_processes, (f"file://{tmp_path}/meet", names), nprocs=2)
