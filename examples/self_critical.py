"""Self-critical training: a captioner's own samples, rewarded by caption metrics, with the other samples as baseline.

Self-critical Sequence Training, https://arxiv.org/abs/1612.00563, in the form that uses the mean reward of an image's
other samples as the baseline (https://arxiv.org/abs/2003.09971); CIDEr, https://arxiv.org/abs/1411.5726.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import Trainer
from transformers.modeling_outputs import BaseModelOutput


Ids = Sequence[int]


def _grams(text: Ids, orders: int) -> Iterable[tuple[int, ...]]:
    text = tuple(text)
    return (text[i : i + n] for n in range(1, orders + 1) for i in range(len(text) - n + 1))


class CiderReward:
    """CIDEr-D of token sequences against references, with document frequencies of the whole training set.

    Args:
        references: for each image its reference sequences. The end token belongs to a sequence: a caption that stops
            in mid-sentence loses the n-grams that end with it.
    """

    def __init__(self, references: Sequence[Sequence[Ids]], orders: int = 4, sigma: float = 6.0):
        self.orders, self.sigma = orders, sigma
        self.log_images = math.log(len(references))
        self.frequency = Counter()
        for texts in references:
            self.frequency.update({gram for text in texts for gram in _grams(text, self.orders)})
        self.references = [[self._vector(text) for text in texts] for texts in references]

    def _vector(self, text: Ids) -> tuple[list[dict], list[float], int]:
        """tf-idf weights by n-gram order, their norms, and the length."""
        vectors = [{} for _ in range(self.orders)]
        for gram, count in Counter(_grams(text, self.orders)).items():
            weight = self.log_images - math.log(max(1, self.frequency[gram]))
            vectors[len(gram) - 1][gram] = count * weight
        return vectors, [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors], len(text)

    def __call__(self, image: int, text: Ids) -> float:
        """The score of one sequence, 0 to 10, against the references of image number `image`."""
        vectors, norms, length = self._vector(text)
        total = 0.0
        for others, other_norms, other_length in self.references[image]:
            penalty = math.exp(-((length - other_length) ** 2) / (2 * self.sigma**2))
            for vector, norm, other, other_norm in zip(vectors, norms, others, other_norms, strict=True):
                if norm and other_norm:
                    shared = sum(min(w, other[gram]) * other[gram] for gram, w in vector.items() if gram in other)
                    total += penalty * shared / (norm * other_norm)
        return 10 * total / (self.orders * len(self.references[image]))


class PrecisionReward:
    """Mean n-gram precision (n = 1 to 4) against references, with BLEU's clipping and brevity penalty; 0 to 1.

    Args:
        references: as `CiderReward` takes them.
    """

    def __init__(self, references: Sequence[Sequence[Ids]], orders: int = 4):
        self.orders = orders
        self.lengths = [[len(text) for text in texts] for texts in references]
        self.most = []
        for texts in references:
            most = Counter()
            for text in texts:
                most |= Counter(_grams(text, orders))
            self.most.append(most)

    def __call__(self, image: int, text: Ids) -> float:
        found, possible = [0] * self.orders, [0] * self.orders
        for gram, count in Counter(_grams(text, self.orders)).items():
            found[len(gram) - 1] += min(count, self.most[image][gram])
            possible[len(gram) - 1] += count
        closest = min(self.lengths[image], key=lambda length: (abs(length - len(text)), length))
        brevity = min(1.0, math.exp(1 - closest / max(1, len(text))))
        return brevity * sum(f / p for f, p in zip(found, possible, strict=True) if p) / self.orders


class CaptionReward:
    """CIDEr-D plus `precision_weight` times the mean n-gram precision."""

    def __init__(self, references: Sequence[Sequence[Ids]], precision_weight: float = 0.0):
        self.cider, self.weight = CiderReward(references), precision_weight
        self.precision = PrecisionReward(references)

    def __call__(self, image: int, text: Ids) -> float:
        return self.cider(image, text) + (self.weight * self.precision(image, text) if self.weight else 0.0)


def check_samples(samples: int) -> None:
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}: the others are each sample's baseline")


@torch.no_grad()
def draw_samples(model: nn.Module, image_embeds: torch.Tensor, samples: int, max_new_tokens: int) -> torch.Tensor:
    """Ids `[images * samples, length]`, drawn without truncating the distribution, dropout off."""
    model.eval()
    ids = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=image_embeds.detach()),
        do_sample=True,
        top_k=0,
        num_beams=1,
        num_return_sequences=samples,
        max_new_tokens=max_new_tokens,
    )
    model.train()
    return ids


def self_critical_loss(
    model: nn.Module,
    image_embeds: torch.Tensor,
    images: torch.Tensor,
    reward: CaptionReward,
    samples: int = 5,
    max_new_tokens: int = 22,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The policy gradient of a reward, a mean over drawn words; the mean reward and length of the samples.

    Args:
        model: a captioner in training.
        image_embeds: `[images, tokens, width]`, of its image tower.
        images: `[images]`, long: their numbers, as the reward knows them.
        reward: `reward(image number, ids after the start token, up to and with the end token) -> float`.
        samples: captions drawn for an image, at least 2: the others are each sample's baseline.
        max_new_tokens: length at which a caption is cut.

    Raises:
        ValueError: fewer samples.
    """
    check_samples(samples)
    ids = draw_samples(model, image_embeds, samples, max_new_tokens)
    end = model.config.text_config.eos_token_id
    texts = [row[1 : row.index(end) + 1] if end in row else row[1:] for row in ids.tolist()]
    numbers = images.repeat_interleave(samples).tolist()
    rewards = torch.tensor([reward(image, text) for image, text in zip(numbers, texts, strict=True)])
    rewards = rewards.view(-1, samples)
    baseline = (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    advantage = (rewards - baseline).flatten().to(ids.device)
    drawn = torch.zeros_like(ids, dtype=torch.bool)
    for row, text in enumerate(texts):
        drawn[row, 1 : len(text) + 1] = True
    logits = model(encoder_outputs=(image_embeds,), input_ids=ids).logits[:, :-1].float()
    log_probs = -nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    loss = -(advantage[:, None] * log_probs * drawn[:, 1:]).sum() / drawn.sum()
    return loss, {"reward": rewards.mean().item(), "length": drawn.sum(1).float().mean().item()}


class SelfCriticalTrainer(Trainer):
    """`Trainer` whose loss is `self_critical_loss`, on one process.

    Batches hold `pixel_values` and `index`, the images' numbers as the reward knows them.

    Args:
        reward, samples: of `self_critical_loss`.
    """

    def __init__(self, *args, reward: CaptionReward, samples: int = 5, **kwargs):
        super().__init__(*args, **kwargs)
        check_samples(samples)
        self.reward, self.samples = reward, samples
        self.model_accepts_loss_kwargs = False  # the loss is a mean over samples, whatever their length

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        image_embeds = model.get_encoder()(inputs["pixel_values"]).last_hidden_state
        loss, said = self_critical_loss(model, image_embeds, inputs["index"], self.reward, self.samples)
        if self.state.global_step % self.args.logging_steps == 0:
            self.log(said)
        return (loss, {"loss": loss}) if return_outputs else loss
