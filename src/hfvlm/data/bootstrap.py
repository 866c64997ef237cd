"""CapFilt: a captioner writes new texts for web images, and a filter drops the texts, old and new, that do not match.

Section 3.3 of BLIP, https://arxiv.org/abs/2201.12086.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hfvlm.data.fingerprint import fingerprint
from hfvlm.data.shards import Counts, Kept, ShardFolder
from hfvlm.data.web import WebRow, WebRows
from hfvlm.embedder import Embedder
from hfvlm.pixels import PixelLoader


#: pairs that the filter reads at a time
PAIRS = 128


@dataclass(frozen=True)
class Recipe:
    """How a round is made; with the models and the input it decides every row.

    Args:
        threshold: the least probability of a match that a text is kept for.
        top_p: the probability that the words hold together that are drawn from (nucleus sampling).
        min_length, max_length: tokens that the captioner writes, its prompt not among them.
        captions: that it writes an image.
        seed: of the sampling, with `round` and the number of the shard.
        round: 1 for the first; a later one, with models trained on the one before, draws anew.
        shard_size: rows of the input a shard.
        batch_size: images at a time; other batches draw other words.

    Raises:
        ValueError: a value out of range, by name.
    """

    threshold: float = 0.5
    top_p: float = 0.9
    min_length: int = 5
    max_length: int = 20
    captions: int = 1
    seed: int = 0
    round: int = 1
    shard_size: int = 1000
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a probability, 0 to 1, got {self.threshold}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0 or self.min_length < 0:
            raise ValueError(f"seed and min_length must not be negative, got {self.seed} and {self.min_length}")
        for name in ("captions", "round", "shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_length < max(self.min_length, 1):
            raise ValueError(f"max_length ({self.max_length}) must be at least 1 and min_length ({self.min_length})")

    def shards(self, rows: int) -> int:
        """How many shards so many rows make."""
        return -(-rows // self.shard_size)

    def shard_seed(self, shard: int) -> int:
        """What the sampling of a shard starts from, whichever process makes it."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.round}/{shard}".encode()).digest()[:8], "big") >> 1


class CapFilt:
    """A captioner and a filter that make rows of web images and texts into kept ones.

    Args:
        captioner: a model with `generate`, as `BlipForConditionalGeneration`; put into evaluation mode.
        captioner_processor: its processor.
        judge: the filter, a retrieval head of a fusion model with `match`; put into evaluation mode.
        judge_processor: its processor.
        recipe: of the round.

    Raises:
        TypeError: a model of another kind.
    """

    def __init__(self, captioner: Any, captioner_processor: Any, judge: Any, judge_processor: Any, recipe: Recipe):
        if not getattr(captioner, "can_generate", bool)():
            raise TypeError(
                f"captioner: {type(captioner).__name__} writes no texts: use a captioner, such as "
                "BlipForConditionalGeneration"
            )
        if not hasattr(judge, "match"):
            raise TypeError(
                f"filter: {type(judge).__name__} does not judge pairs of images and texts: use a retrieval head, such "
                "as BlipForImageTextRetrieval"
            )
        self.captioner, self.captioner_processor = captioner.eval(), captioner_processor
        self.judge, self.judge_processor, self.recipe = judge.eval(), judge_processor, recipe
        self.loader = PixelLoader(captioner_processor.image_processor)
        same = captioner_processor.image_processor.to_dict() == judge_processor.image_processor.to_dict()
        self.judge_loader = None if same else PixelLoader(judge_processor.image_processor)
        self._tokens = Embedder(judge, judge_processor).tokens

    def settings(self, rows: WebRows) -> dict[str, Any]:
        """All that the kept rows depend on, by name."""
        return {
            "input": rows.digest(),
            "captioner": fingerprint(self.captioner, self.captioner_processor.image_processor),
            "filter": fingerprint(self.judge, self.judge_processor.image_processor),
            "dtype": f"{self.captioner.dtype}, {self.judge.dtype}",
            **asdict(self.recipe),
        }

    def __call__(self, rows: list[WebRow], shard: int, on_error: Callable[[str], None] | None = None) -> Kept:
        """The kept texts of a shard's rows.

        Args:
            on_error: is told of each image that cannot be read, which is left out.

        Raises:
            ValueError: the filter gives scores that are not finite.
        """
        kept, counts = Kept(), Counts()
        cuda = [self.captioner.device] if self.captioner.device.type == "cuda" else []

        def skip(position: int, error: Exception) -> None:
            counts.skipped += 1
            if on_error is not None:
                on_error(f"row {rows[position].number}: {error}")

        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            torch.manual_seed(self.recipe.shard_seed(shard))
            images = (row.image for row in rows)
            for positions, pixels in self.loader.stream(images, self.recipe.batch_size, skip):
                self._batch([rows[position] for position in positions], pixels, kept, counts)
        kept.counts = counts
        return kept

    def _batch(self, rows: list[WebRow], pixels: torch.Tensor, kept: Kept, counts: Counts) -> None:
        written = self._write(pixels)
        texts = [[*row.texts, *new] for row, new in zip(rows, written, strict=True)]
        if self.judge_loader is not None:
            pixels = self.judge_loader([row.image for row in rows])["pixel_values"]
        scores = iter(self.scores(pixels, texts))
        for row, said in zip(rows, texts, strict=True):
            counts.images += 1
            for place, text in enumerate(said):
                source = "web" if place < len(row.texts) else "synthetic"
                score = next(scores)
                good = score >= self.recipe.threshold
                setattr(counts, source, getattr(counts, source) + 1)
                if good:
                    setattr(counts, f"{source}_kept", getattr(counts, f"{source}_kept") + 1)
                    kept.images.append(row.image)
                    kept.texts.append(text)
                    kept.sources.append(source)
                    kept.scores.append(score)
                    kept.rows.append(row.number)

    def _write(self, pixels: torch.Tensor) -> list[list[str]]:
        """New texts of each image, without the prompt that the processor starts them with."""
        recipe, model, processor = self.recipe, self.captioner, self.captioner_processor
        prompt, cut = {}, 0
        if getattr(processor, "prompt", ""):
            ids = processor(text=processor.prompt, return_tensors="pt")["input_ids"].to(model.device)
            prompt, cut = {"input_ids": ids.expand(len(pixels), -1)}, ids.shape[1]
        sequences = model.generate(
            pixel_values=pixels.to(model.device, model.dtype),
            do_sample=True,
            num_beams=1,
            top_p=recipe.top_p,
            top_k=0,
            min_new_tokens=recipe.min_length,
            max_new_tokens=recipe.max_length,
            num_return_sequences=recipe.captions,
            return_dict_in_generate=False,
            **prompt,
        )
        texts = processor.batch_decode(sequences[:, cut:], skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        starts = range(0, len(texts), recipe.captions)
        return [[text for text in texts[start : start + recipe.captions] if text] for start in starts]

    @torch.inference_mode()
    def scores(self, pixels: torch.Tensor, texts: list[list[str]]) -> list[float]:
        """The probability that each text matches its image, one list of all; an image is encoded once.

        Args:
            pixels: `[images, channels, h, w]`, of the filter's processor.
            texts: of each image.

        Raises:
            ValueError: scores that are not finite.
        """
        model = self.judge
        pairs = [(image, text) for image, said in enumerate(texts) for text in said]
        if not pairs:
            return []
        tokens = model.get_image_features(pixels.to(model.device, model.dtype)).last_hidden_state
        scores: list[float] = []
        for start in range(0, len(pairs), PAIRS):
            part = pairs[start : start + PAIRS]
            ids = {name: value.to(model.device) for name, value in self._tokens([text for _, text in part]).items()}
            index = torch.tensor([image for image, _ in part], device=model.device)
            logits = model.match(tokens, ids["input_ids"], ids["attention_mask"], memory_index=index)
            if not logits.isfinite().all():
                raise ValueError(
                    f"filter: {type(model).__name__} gives NaN or infinite scores in {model.dtype}: its weights are "
                    "broken, or their numbers outgrow this precision; try float32 (--dtype fp32)"
                )
            scores += logits.float().softmax(dim=-1)[:, 1].tolist()
        return scores


def bootstrap(
    rows: WebRows,
    folder: ShardFolder,
    capfilt: CapFilt,
    shards: Iterable[int] | None = None,
    on_error: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, Counts]]:
    """Makes the shards that are not there, and gives each one's number and counts, also of those that are.

    Args:
        rows: the input.
        folder: where the shards go; with `settings` of these rows, models and recipe.
        capfilt: the models.
        shards: which; None: all.
        on_error: is told of each image that cannot be read, which is left out.

    Raises:
        ValueError: a row that is not an image with texts; a filter whose scores are not finite.
        ShardError: a shard that is there was made in another way.
        OSError: the shards cannot be written.
    """
    size = capfilt.recipe.shard_size
    for shard in range(capfilt.recipe.shards(len(rows))) if shards is None else shards:
        counts = folder.counts(shard)
        if counts is None:
            kept = capfilt(rows.read(shard * size, (shard + 1) * size), shard, on_error)
            folder.write(shard, kept)
            counts = kept.counts
        yield shard, counts
