"""The releases' beam search inside stock generate(), against a plain implementation of what they did."""

import itertools

import pytest
import torch
from tiny import tiny_model


END, PAD, START, LIMIT = 3, 0, 5, 9


@pytest.fixture(scope="module")
def model():
    model = tiny_model("hfvlm_blip", "AutoModelForImageTextToText", release_beam_search=True)
    with torch.no_grad():
        model.lm_head.decoder.bias[END] += 2.5  # texts of every length, some up to the limit
    return model


@torch.no_grad()
def plain_beam_search(model, image, prompt, beams, length_penalty, early_stopping):
    """Sequences (without the end token) and scores of one image, best first.

    An ended text scores its log-probability over the number of its tokens, prompt and all, before the end token; the
    search is over when `beams` texts have ended and the best candidate, at the length so far, beats none of them, or
    at the limit, where the running texts count as they are.
    """
    ended, running = [], [(0.0, prompt)]

    def take(score, tokens):
        ended.append((score / len(tokens) ** length_penalty, tokens))
        ended.sort(key=lambda entry: -entry[0])
        del ended[beams:]

    while True:
        length = len(running[0][1])
        logits = model(image.expand(len(running), -1, -1, -1), torch.tensor([tokens for _, tokens in running])).logits
        scores = logits[:, -1].log_softmax(-1)
        candidates = [
            (total + score, tokens, token)
            for (total, tokens), row in zip(running, scores.tolist())
            for token, score in enumerate(row)
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * beams]
        running = []
        for rank, (total, tokens, token) in enumerate(candidates):
            if token != END:
                running.append((total, [*tokens, token]))
            elif rank < beams:
                take(total, tokens)
        running = running[:beams]
        best = candidates[0][0] / length**length_penalty
        if len(ended) == beams and (early_stopping or ended[-1][0] >= best):
            return ended
        if length + 1 == LIMIT:
            for total, tokens in running:
                take(total, tokens)
            return ended


@pytest.mark.parametrize("length_penalty, early_stopping", [(1.0, False), (1.0, True), (0.0, False), (2.0, False)])
def test_searches_as_the_releases_did(model, length_penalty, early_stopping):
    beams = 3
    for seed, prompt in itertools.product(range(6), ([START], [START, 9, 11], [START, 9, 11, 17, 21])):
        torch.manual_seed(seed)
        images = torch.randn(2, 3, 32, 32)
        out = model.generate(
            images,
            input_ids=torch.tensor([prompt, prompt]),
            num_beams=beams,
            num_return_sequences=beams,
            max_length=LIMIT,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            return_dict_in_generate=True,
            output_scores=True,
        )
        expected = [
            entry
            for image in images
            for entry in plain_beam_search(model, image[None], prompt, beams, length_penalty, early_stopping)
        ]
        for row, score, (theirs, tokens) in zip(out.sequences.tolist(), out.sequences_scores.tolist(), expected):
            written = [*tokens, END][: len(row)]
            assert row == written + [PAD] * (len(row) - len(written))
            assert score == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [1.0, 2.0])
def test_padding_does_not_count(model, length_penalty):
    prompts = [[START, 9, 11, 17, 21, 30, 31, 32], [START], [START, 9, 11]]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "length_penalty": length_penalty}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    for seed in range(4):
        torch.manual_seed(seed)
        images = torch.randn(3, 3, 32, 32)
        together = model.generate(images, input_ids=ids, attention_mask=(ids != PAD).long(), **options)
        for i, prompt in enumerate(prompts):
            alone = model.generate(images[i : i + 1], input_ids=torch.tensor([prompt]), **options)
            rows = slice(3 * i, 3 * i + 3)
            written = together.sequences[rows, width:]
            expected = alone.sequences[:, len(prompt) :]
            assert torch.equal(written[:, : expected.shape[1]], expected)
            assert (written[:, expected.shape[1] :] == PAD).all()
            torch.testing.assert_close(together.sequences_scores[rows], alone.sequences_scores, rtol=1e-4, atol=1e-4)


def test_is_stock_where_the_config_does_not_ask(model):
    torch.manual_seed(0)
    images, prompt = torch.randn(2, 3, 32, 32), torch.tensor([[START, 9, 11]] * 2)
    kwargs = {"input_ids": prompt, "num_beams": 3, "max_length": LIMIT, "return_dict_in_generate": True}
    model.config.release_beam_search = False
    try:
        stock = model.generate(images, output_scores=True, **kwargs)
    finally:
        model.config.release_beam_search = True
    released = model.generate(images, output_scores=True, **kwargs)
    assert not torch.allclose(stock.sequences_scores, released.sequences_scores)
    transitions = model.compute_transition_scores(stock.sequences, stock.scores, stock.beam_indices)
    generated = (stock.beam_indices >= 0).sum(1)
    torch.testing.assert_close(transitions.sum(1) / generated, stock.sequences_scores)
