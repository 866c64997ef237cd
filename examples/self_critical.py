"""Self-critical training: a captioner's own samples, rewarded by CIDEr-D, with the other samples as the baseline.

Self-critical Sequence Training, https://arxiv.org/abs/1612.00563, in the form that uses the mean reward of an image's
other samples as the baseline (https://arxiv.org/abs/2003.09971); CIDEr, https://arxiv.org/abs/1411.5726.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import Trainer


Ids = Sequence[int]


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
            self.frequency.update({gram for text in texts for gram in self._grams(text)})
        self.references = [[self._vector(text) for text in texts] for texts in references]

    def _grams(self, text: Ids) -> Iterable[tuple[int, ...]]:
        text = tuple(text)
        return (text[i : i + n] for n in range(1, self.orders + 1) for i in range(len(text) - n + 1))

    def _vector(self, text: Ids) -> tuple[list[dict], list[float], int]:
        """tf-idf weights by n-gram order, their norms, and the length."""
        vectors = [{} for _ in range(self.orders)]
        for gram, count in Counter(self._grams(text)).items():
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


class SelfCriticalTrainer(Trainer):
    """`Trainer` whose loss is the policy gradient of a reward.

    Batches hold `pixel_values` and `index`, the images' numbers as the reward knows them.

    Args:
        reward: `reward(image number, ids after the start token, up to and with the end token) -> float`.
        samples: captions drawn for an image.
        max_new_tokens: length at which a caption is cut.
    """

    def __init__(self, *args, reward: CiderReward, samples: int = 5, max_new_tokens: int = 22, **kwargs):
        super().__init__(*args, **kwargs)
        self.reward, self.samples, self.max_new_tokens = reward, samples, max_new_tokens
        self.model_accepts_loss_kwargs = False  # the loss is a mean over samples, whatever their length

    @torch.no_grad()
    def sample(self, model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """Ids `[images * samples, length]`, drawn without truncating the distribution, dropout off."""
        model.eval()
        ids = model.generate(
            pixel_values=pixel_values,
            do_sample=True,
            top_k=0,
            num_beams=1,
            num_return_sequences=self.samples,
            max_new_tokens=self.max_new_tokens,
        )
        model.train()
        return ids

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        end = model.config.text_config.eos_token_id
        ids = self.sample(model, inputs["pixel_values"])
        texts = [row[1 : row.index(end) + 1] if end in row else row[1:] for row in ids.tolist()]
        images = inputs["index"].repeat_interleave(self.samples).tolist()
        rewards = torch.tensor([self.reward(image, text) for image, text in zip(images, texts, strict=True)])
        rewards = rewards.view(-1, self.samples)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        advantage = (rewards - baseline).flatten().to(ids.device)
        drawn = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(texts):
            drawn[row, 1 : len(text) + 1] = True
        logits = model(pixel_values=inputs["pixel_values"], input_ids=ids).logits[:, :-1].float()
        log_probs = -nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = -(advantage[:, None] * log_probs * drawn[:, 1:]).sum() / drawn.sum()
        if self.state.global_step % self.args.logging_steps == 0:
            self.log({"reward": rewards.mean().item(), "length": drawn.sum(1).float().mean().item()})
        return (loss, {"loss": loss}) if return_outputs else loss
