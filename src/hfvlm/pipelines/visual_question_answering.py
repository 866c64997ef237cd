"""The visual-question-answering pipeline: answers to questions about images, written or chosen from a list."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from hfvlm.images import open_image
from hfvlm.pipelines.base import VlmPipeline
from hfvlm.pixels import PixelLoader
from hfvlm.processing import reading_options


#: of written answers, unless a call says otherwise: as ALBEF and BLIP are evaluated
WRITING = {"num_beams": 3, "max_new_tokens": 10}


class VisualQuestionAnsweringPipeline(VlmPipeline):
    """Answers questions about images.

    ```python
    >>> pipe = hfvlm.pipeline("visual-question-answering", model=folder)
    >>> pipe("photo.jpg", question="what color is the dog")
    [{'answer': 'brown', 'score': 0.71}]
    >>> pipe("photo.jpg", question="what color is the dog", candidates=["black", "brown", "white"])
    [{'answer': 'brown', 'score': 0.93}, {'answer': 'black', 'score': 0.06}, {'answer': 'white', 'score': 0.01}]
    ```

    Args:
        model: a head that answers questions.
        processor: takes `images=` and `text=`; it brings the tokenizer and the image processor.

    The other arguments are those of `transformers.Pipeline` and those of a call.
    """

    name = "visual-question-answering"
    prepares = "images and questions"

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model=model, processor=processor, **kwargs)
        self._loader = PixelLoader(processor.image_processor)
        self._reading = reading_options(processor)

    @staticmethod
    def check_model(model: Any) -> None:
        if not hasattr(model, "rank_answers"):
            raise TypeError(
                f"{type(model).__name__} does not answer questions: use a head that does, such as "
                "BlipForVisualQuestionAnswering"
            )

    def _sanitize_parameters(
        self,
        question: str | None = None,
        candidates: Sequence[str] | None = None,
        top_k: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        generate = {**(generate_kwargs or {})}
        if max_new_tokens is not None:
            if "max_new_tokens" in generate:
                raise ValueError("max_new_tokens is given twice: as an argument, and in generate_kwargs")
            generate["max_new_tokens"] = max_new_tokens
        elif generate.get("max_length") is not None:
            generate.setdefault("max_new_tokens", None)  # else that of WRITING would go before
        if candidates is not None and generate:
            raise ValueError(f"candidates are ranked, nothing is written: leave out {', '.join(generate)}")
        reading = {"question": question, "timeout": timeout}
        answering = {"candidates": candidates, "top_k": top_k, "generate": generate or None}
        given = [{name: value for name, value in part.items() if value is not None} for part in (reading, answering)]
        return *given, {name: value for name, value in answering.items() if name == "candidates"}

    def __call__(self, images: Any = None, question: str | None = None, **kwargs: Any) -> Any:
        """Answers a question about one image, or about each of several.

        Args:
            images: a path, URL, PIL image or bytes; a mapping with that as its "image", and perhaps its own
                "question"; or a list of these.
            question: what is asked about every image that has no question of its own.
            candidates: answers to choose from; left out, answers are written.
            top_k: how many answers to return; left out: one that is written, or all candidates.
            max_new_tokens: tokens a written answer may have; left out: 10.
            generate_kwargs: further arguments of `model.generate`, e.g. `{"num_beams": 5}`.
            batch_size: images at a time.
            timeout: seconds to wait for a URL's server.

        Returns:
            `[{"answer": ..., "score": ...}]`, the best first: how probable the model finds it to write that answer, or
            how probable a candidate is among the others; a list of these for a list.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: no image, no question, an empty list of candidates, an empty one or the same twice among them.
            TypeError: a question or a candidate that is no string.
        """
        images = kwargs.pop("image", None) if images is None else images
        images = self.given_images(images, kwargs)
        if question is not None:
            kwargs["question"] = question
        if isinstance(kwargs.get("candidates"), str):
            raise TypeError("candidates must be a list of strings, got str")
        return super().__call__(images, **kwargs)

    def preprocess(self, inputs: Any, question: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """One image and its question as the model's inputs of a batch of one."""
        image, question = self.image_and("question", inputs, question)
        self._check_text("question", question or "")
        text = self.processor(text=[question], return_tensors="pt", **self._reading)
        return {**self._loader([open_image(image, timeout)]), **text}

    @staticmethod
    def _check_text(name: str, text: Any) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a string, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{name} is empty: say what to {'ask' if name == 'question' else 'choose from'}")

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        candidates: Sequence[str] | None = None,
        top_k: int | None = None,
        generate: dict[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        pixels = model_inputs["pixel_values"].to(self.device, self.model.dtype)
        ids, mask = (model_inputs[name].to(self.device) for name in ("input_ids", "attention_mask"))
        read = {"encoder_outputs": self.model.encode_questions(pixels, ids, mask), "attention_mask": mask}
        if candidates is None:
            return self._written(read, len(ids), top_k or 1, generate or {})
        return {name: value[:, :top_k] for name, value in self._chosen(read, list(candidates)).items()}

    def _written(
        self, read: dict[str, Any], questions: int, count: int, generate: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """`sequences` `[questions, count, length]` and `scores` `[questions, count]`, the best first."""
        options = {**WRITING, "num_return_sequences": count, **generate}
        if "num_beams" not in generate:
            options["num_beams"] = max(options["num_beams"], count)
        ids = self.model.generate(**read, **options)
        ids = ids if isinstance(ids, torch.Tensor) else ids.sequences  # with return_dict_in_generate
        ends = torch.as_tensor(self.model.generation_config.eos_token_id, device=ids.device)
        ended = torch.isin(ids[:, 1:], ends).long()
        labels = ids[:, 1:].masked_fill(ended.cumsum(-1) > ended, -100)  # nothing after the end token counts
        visible = self.model.memory_mask(read["encoder_outputs"][0], read["attention_mask"])
        read = {**read, "attention_mask": visible}
        logits = self.model(**read, decoder_input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        scores, order = losses.sum(-1).neg().exp().view(questions, -1).sort(dim=-1, descending=True, stable=True)
        sequences = ids.view(questions, -1, ids.shape[-1])
        return {"sequences": sequences.take_along_dim(order[..., None], 1), "scores": scores}

    def _chosen(self, read: dict[str, Any], candidates: list[str]) -> dict[str, torch.Tensor]:
        """`places` among the candidates and `scores`, both `[questions, candidates]`, the best first."""
        if not candidates:
            raise ValueError("candidates is an empty list: give at least one answer to choose")
        if len(set(candidates)) < len(candidates):
            [(twice, _)] = Counter(candidates).most_common(1)
            raise ValueError(f"candidates holds {twice!r} twice")
        for one in candidates:
            self._check_text("a candidate", one)
        tokenizer, text = self.processor.tokenizer, self.model.config.text_config
        end = text.eos_token_id if isinstance(text.eos_token_id, int) else text.eos_token_id[0]
        words = tokenizer(candidates, add_special_tokens=False, verbose=False)["input_ids"]
        rows = [[text.bos_token_id, *ids[: text.max_position_embeddings - 2], end] for ids in words]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(self.device)
        ranking = self.model.rank_answers(
            **read, answer_ids=batch["input_ids"], answer_mask=batch["attention_mask"], k=len(rows)
        )
        scores = ranking.scores if self.model.first_token_twice else ranking.scores.softmax(-1)
        return {"places": ranking.answers, "scores": scores}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], candidates: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        scores = model_outputs["scores"][0].tolist()
        if candidates is None:
            texts = self.processor.tokenizer.batch_decode(model_outputs["sequences"][0], skip_special_tokens=True)
        else:
            texts = [candidates[place] for place in model_outputs["places"][0].tolist()]
        return [{"answer": text.strip(), "score": score} for text, score in zip(texts, scores, strict=True)]
