"""The visual-question-answering pipeline: answers written and chosen, as the head writes and ranks them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

import hfvlm
from hfvlm.images import ImageError
from hfvlm.pipelines.visual_question_answering import WRITING, VisualQuestionAnsweringPipeline


ANSWERS = "AutoModelForVisualQuestionAnswering"
QUESTION, CANDIDATES = "two red dogs on the grass", ["a dog", "two cats on the beach", "red", "blue"]


@pytest.fixture(scope="module", params=["albef", "blip"])
def parts(request):
    return tiny_model(request.param, ANSWERS), tiny_processor(request.param)


@pytest.fixture
def pipe(parts):
    return hfvlm.pipeline("visual-question-answering", parts[0], processor=parts[1], device="cpu")


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture
def batch(parts, photos):
    """What the head is given for the first photo."""
    options = {"task": "encode"} if isinstance(parts[1], hfvlm.BlipProcessor) else {}
    return parts[1](images=photos[:1], text=[QUESTION], **options)


def test_answers_are_written_as_by_generate(pipe, parts, photos, batch):
    model, processor = parts
    ids = model.generate(**batch, **WRITING)
    (row,) = pipe(photos[0], question=QUESTION)
    assert row["answer"] == processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    logits = model(**batch, decoder_input_ids=ids).logits.log_softmax(-1)[:, :-1]
    likely = logits.gather(-1, ids[:, 1:, None])[0, :, 0]
    ended = (ids[0, 1:] == model.config.text_config.eos_token_id).nonzero()
    likely = likely[: int(ended[0]) + 1] if len(ended) else likely
    assert row["score"] == pytest.approx(likely.sum().exp().item(), rel=1e-4)


def test_several_written_answers_come_best_first(pipe, photos):
    rows = pipe(photos[0], question=QUESTION, top_k=4, max_new_tokens=4)
    scores = [row["score"] for row in rows]
    assert len(rows) == 4 and scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    other = pipe(photos[0], question=QUESTION, generate_kwargs={"num_beams": 1, "max_new_tokens": 2})
    assert len(other) == 1


def test_candidates_are_ranked_as_by_the_head(pipe, parts, photos, batch):
    model, processor = parts
    text = model.config.text_config
    words = processor.tokenizer(CANDIDATES, add_special_tokens=False)["input_ids"]
    rows = [torch.tensor([text.bos_token_id, *ids, text.eos_token_id]) for ids in words]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ranking = model.rank_answers(**batch, answer_ids=ids)
    found = pipe(photos[0], question=QUESTION, candidates=CANDIDATES)
    assert [row["answer"] for row in found] == [CANDIDATES[i] for i in ranking.answers[0].tolist()]
    assert sum(row["score"] for row in found) == pytest.approx(1, abs=1e-5)
    assert pipe(photos[0], question=QUESTION, candidates=CANDIDATES, top_k=2) == found[:2]


def test_images_with_questions_of_their_own(pipe, photos):
    rows = pipe([{"image": photos[0], "question": QUESTION}, photos[1]], question="a cat", candidates=CANDIDATES)
    assert rows[0] == pipe(photos[0], question=QUESTION, candidates=CANDIDATES)
    assert rows[1] == pipe(image=photos[1], question="a cat", candidates=CANDIDATES)


@pytest.mark.parametrize("options", [{"candidates": CANDIDATES}, {"top_k": 2}], ids=["chosen", "written"])
def test_a_batch_is_answered_as_each_alone(pipe, photos, options):
    rows = [{"image": photos[0], "question": QUESTION}, {"image": photos[1], "question": "a cat"}]
    together = pipe(rows, batch_size=2, **options)
    for found, row in zip(together, rows, strict=True):
        alone = pipe(row, **options)
        assert [one["answer"] for one in found] == [one["answer"] for one in alone]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in alone], rel=1e-3)


def test_answers_that_read_padding_are_those_of_generate(parts, photos):
    """As the converter sets BLIP: the padding of a batch's shorter questions is written from, and scored by, too."""
    model = tiny_model(parts[0].config.model_type.removeprefix("hfvlm_"), ANSWERS, answers_read_padding=True)
    processor, questions = parts[1], [QUESTION, "a cat"]
    pipe = hfvlm.pipeline("visual-question-answering", model, processor=processor, device="cpu")
    options = {"task": "encode"} if isinstance(processor, hfvlm.BlipProcessor) else {}
    batch = processor(images=photos, text=questions, **options)
    assert not batch["attention_mask"].all()
    how = {"num_beams": 1, "max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    made = model.generate(**batch, **how)
    found = pipe(
        [{"image": photo, "question": question} for photo, question in zip(photos, questions)],
        batch_size=2,
        generate_kwargs={"num_beams": 1, "max_new_tokens": 4},
    )
    likely = torch.stack(made.logits, dim=1).log_softmax(-1)
    for row, ids, scores in zip(found, made.sequences, likely, strict=True):
        assert row[0]["answer"] == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        ended = (ids[1:] == model.config.text_config.eos_token_id).nonzero()
        length = int(ended[0]) + 1 if len(ended) else len(ids) - 1
        chosen = scores[:length].gather(-1, ids[1 : length + 1, None])
        assert row[0]["score"] == pytest.approx(chosen.sum().exp().item(), rel=1e-4)


def test_the_ranking_never_reads_padding(parts, photos):
    model = tiny_model(parts[0].config.model_type.removeprefix("hfvlm_"), ANSWERS, answers_read_padding=True)
    pipe = hfvlm.pipeline("visual-question-answering", model, processor=parts[1], device="cpu")
    rows = [{"image": photos[0], "question": QUESTION}, {"image": photos[1], "question": "a cat"}]
    for found, row in zip(pipe(rows, batch_size=2, candidates=CANDIDATES), rows, strict=True):
        alone = pipe(row, candidates=CANDIDATES)
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in alone], rel=1e-3)


def test_a_row_with_nothing_of_its_own_takes_what_the_call_says(pipe, photos):
    assert pipe({"image": photos[0], "question": None}, question="a cat") == pipe(photos[0], question="a cat")


def test_a_saved_folder_answers(pipe, photos, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = hfvlm.pipeline("visual-question-answering", str(tmp_path), device="cpu", dtype="float32")
    expected = pipe(photos[0], question=QUESTION)
    assert again(photos[0], question=QUESTION)[0]["answer"] == expected[0]["answer"]
    assert hfvlm.pipeline(model=str(tmp_path), device="cpu").task == "visual-question-answering"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe, photo: pipe(), ValueError, "pass images"),
        (lambda pipe, photo: pipe(photo), ValueError, "question is empty"),
        (lambda pipe, photo: pipe(photo, question=" "), ValueError, "question is empty"),
        (lambda pipe, photo: pipe(photo, questions="a"), TypeError, "takes no 'questions', did you mean 'question'"),
        (lambda pipe, photo: pipe(photo, question=["a"]), TypeError, "question must be a string, got list"),
        (lambda pipe, photo: pipe(photo, question="a", candidates=[]), ValueError, "candidates is an empty list"),
        (lambda pipe, photo: pipe(photo, question="a", candidates=["a", " "]), ValueError, "a candidate is empty"),
        (lambda pipe, photo: pipe(photo, question="a", candidates=["a", 1]), TypeError, "candidate .* got int"),
        (lambda pipe, photo: pipe(photo, question="a", candidates="yes"), TypeError, "must be a list of strings"),
        (lambda pipe, photo: pipe(photo, question="a", top_k=0), ValueError, "top_k must be at least 1"),
        (
            lambda pipe, photo: pipe(photo, question="a", candidates=["a"], max_new_tokens=3),
            ValueError,
            "nothing is written: leave out max_new_tokens",
        ),
        (
            lambda pipe, photo: pipe(photo, question="a", max_new_tokens=3, generate_kwargs={"max_new_tokens": 2}),
            ValueError,
            "given twice",
        ),
        (lambda pipe, photo: pipe({"question": "a"}), ValueError, "a row needs an 'image'"),
        (lambda pipe, photo: pipe("nowhere.jpg", question="a"), ImageError, "nowhere.jpg"),
    ],
)
def test_bad_input_is_named(pipe, photos, call, error, message):
    with pytest.raises(error, match=message):
        call(pipe, photos[0])


def test_a_model_that_answers_nothing_is_refused():
    with pytest.raises(TypeError, match="BlipModel does not answer questions"):
        VisualQuestionAnsweringPipeline(tiny_model("blip", "AutoModel"), object())
    with pytest.raises(ValueError, match="needs processor="):
        VisualQuestionAnsweringPipeline(tiny_model("blip", "AutoModel"))
