"""Heads of hfvlm that are called as LAVIS's models are: with its samples, giving its results."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from hfvlm.outputs import FusionFeatures
from hfvlm.reranking import UNRANKED, rerank_scores


#: LAVIS's nucleus sampling is over the 50 likeliest words, with this penalty whatever the caller says
NUCLEUS = {"do_sample": True, "top_k": 50, "repetition_penalty": 1.1, "num_beams": 1}


class LavisModel(nn.Module):
    """A head that is called as LAVIS's models are; `head` is the model itself.

    Args:
        head: the model.
        processor: its own.
        max_txt_len: tokens of a text, those beyond are cut; None: as many as the model takes.
    """

    def __init__(self, head: nn.Module, processor: Any, max_txt_len: int | None = None):
        super().__init__()
        self.head, self.processor, self.max_txt_len = head, processor, max_txt_len

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def images(self, samples: dict[str, Any], name: str = "image") -> torch.Tensor:
        """`samples[name]`, `[images, channels, h, w]`, where the model is."""
        pixels = self._given(samples, name)
        if pixels.ndim != 4:
            raise ValueError(
                f"samples[{name!r}] must be [images, channels, h, w], got {list(pixels.shape)}: unsqueeze(0) for one"
            )
        return pixels.to(self.device, self.head.dtype)

    def texts(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`samples["text_input"]` as `input_ids` and `attention_mask` `[texts, length]`, from [CLS] to [SEP]."""
        texts = self._given(samples, "text_input")
        texts = [texts] if isinstance(texts, str) else list(texts)
        limit = min(self.max_txt_len or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def alpha(self, samples: dict[str, Any], epochs: int) -> float | None:
        """The teacher's say, which grows over the first epochs, where the samples tell how far training is; None: the
        config's, or there is no teacher."""
        if not getattr(self.head, "taught_parts", ()) or "num_iters_per_epoch" not in samples:
            return None
        steps = samples["num_iters_per_epoch"]
        return self.head.config.alpha * min(1.0, (samples["epoch"] * steps + samples["iters"]) / (epochs * steps))

    @staticmethod
    def _given(samples: dict[str, Any], name: str) -> Any:
        if samples.get(name) is None:
            raise ValueError(f"samples need {name!r}, these have {', '.join(samples) or 'nothing'}")
        return samples[name]


class Captioner(LavisModel):
    """LAVIS's `blip_caption`."""

    prompt = "a picture of "

    def __init__(self, head: nn.Module, *args: Any):
        super().__init__(head, *args)
        head.config.release_beam_search = True

    def forward(self, samples: dict[str, Any]) -> Any:
        """The loss (`loss`, `loss_lm`) of texts that start with the prompt, as the train processor's do."""
        texts = self.texts(samples)
        ids, mask = texts["input_ids"], texts["attention_mask"]
        ids[:, 0] = self.tokenizer.bos_token_id
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : len(self._prompt_ids)] = -100
        return self.head(pixel_values=self.images(samples), input_ids=ids, attention_mask=mask, labels=labels)

    @torch.no_grad()
    def generate(
        self,
        samples: dict[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        num_captions: int = 1,
    ) -> list[str]:
        """`num_captions` captions an image, an image's together, without the prompt.

        Args:
            samples: "image" `[images, channels, h, w]`.
            use_nucleus_sampling: draw words, instead of searching with beams (whose captions of an image are equal).
            max_length, min_length: tokens, the prompt's among them.
        """
        pixels = self.images(samples)
        prompts = torch.tensor([self._prompt_ids], device=self.device).repeat(len(pixels) * num_captions, 1)
        how = {"num_beams": num_beams, "repetition_penalty": repetition_penalty, "do_sample": False}
        if use_nucleus_sampling:
            how = {**NUCLEUS, "top_p": top_p}
        ids = self.head.generate(
            pixel_values=pixels,
            input_ids=prompts,
            max_length=max_length,
            max_new_tokens=None,  # a generation config's would go before
            min_length=min_length,
            **how,
        )
        return [text[len(self.prompt) :] for text in self.processor.batch_decode(ids)]

    @property
    def _prompt_ids(self) -> list[int]:
        words = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *words]


class FusionFeatureExtractor(LavisModel):
    """LAVIS's `blip_feature_extractor` and `albef_feature_extractor`."""

    @torch.no_grad()
    def extract_features(self, samples: dict[str, Any], mode: str | list[str] = "multimodal") -> FusionFeatures:
        """`image_embeds`, `text_embeds`, `multimodal_embeds` of every token, and `*_embeds_proj` of length 1. Where an
        image tower has no class token, its pooled vector comes first: scripts take the one at 0 for the image's.

        Args:
            samples: "image" and "text_input", as far as the mode needs them.
            mode: "image", "text", "multimodal", or several of them.
        """
        found: dict[str, torch.Tensor] = {}
        for one in [mode] if isinstance(mode, str) else mode:
            inputs = {} if one == "text" else {"pixel_values": self.images(samples)}
            inputs |= {} if one == "image" else self.texts(samples)
            features = self.head.extract_features(inputs, one)
            vision = self.head.config.vision_config
            if one != "text" and vision.pooling in ("mean", "max") and not getattr(vision, "class_token", False):
                features |= self._pooled_first(features, inputs["pixel_values"])
            if one == "multimodal" and not self.head.fusion_layer:  # LAVIS's BLIP projects nothing here
                features = {name: value for name, value in features.items() if not name.endswith("_proj")}
            found |= features
        return FusionFeatures(**found)

    def _pooled_first(self, features: FusionFeatures, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.head.vision_model(pixels).pooler_output
        vectors = {"image_embeds": pooled}
        if self.head.vision_proj is not None:
            vectors["image_embeds_proj"] = nn.functional.normalize(self.head.vision_proj(pooled), dim=-1)
        return {name: torch.cat([vector[:, None], features[name]], dim=1) for name, vector in vectors.items()}


class Matcher(LavisModel):
    """LAVIS's `blip_image_text_matching`."""

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> torch.Tensor:
        """How well images and texts fit.

        Args:
            match_head: "itm": no match and match of image i with text i, logits `[texts, 2]`; "itc": cosine
                similarities `[images, texts]`.
        """
        if match_head not in ("itm", "itc"):
            raise ValueError(f"match_head must be 'itm' or 'itc', got {match_head!r}")
        texts = self.texts(samples)
        images = self.head.get_image_features(self.images(samples))
        if match_head == "itm":
            return self.head.match(images.last_hidden_state, **texts)
        embeds = (images.pooler_output, self.head.get_text_features(**texts).pooler_output)
        images, texts = (nn.functional.normalize(part, dim=-1) for part in embeds)
        return images @ texts.t()


class Retriever(Matcher):
    """LAVIS's `blip_retrieval` and `albef_retrieval`: called with samples, they learn; matching is there as well."""

    def forward(self, samples: dict[str, Any], match_head: str | None = None) -> Any:
        """The losses (`loss`, `loss_itc`, `loss_itm`); weights that come without a teacher learn without one.

        Args:
            samples: "image", "text_input" (one an image), "image_id" `[images]`; "epoch", "iters" and
                "num_iters_per_epoch" say how far alpha has grown: it does over two epochs.
            match_head: judge instead, as `Matcher`.
        """
        if match_head is not None:
            return super().forward(samples, match_head)
        alpha = self.alpha(samples, 2)
        ids = samples.get("image_id")
        ids = None if ids is None else torch.as_tensor(ids, device=self.device).view(-1)
        pixels = self.images(samples)
        return self.head(pixel_values=pixels, image_ids=ids, return_loss=True, alpha=alpha, **self.texts(samples))

    @torch.inference_mode()
    def compute_sim_matrix(
        self, data_loader: Iterable[dict[str, Any]], task_cfg: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of images and texts, `[images, texts]` and `[texts, images]`: of the `k_test` nearest each way the
        judgement plus the similarity, -100 of the others.

        Args:
            data_loader: batches with "image"; its `dataset.text` is the list of texts.
            task_cfg: has `k_test`.
        """
        said, images, tokens, embeds = data_loader.dataset.text, [], [], []
        for samples in data_loader:
            features = self.head.get_image_features(self.images(samples))
            tokens.append(features.last_hidden_state)
            images.append(features.pooler_output)
        texts = self.texts({"text_input": list(said)})
        for part in torch.arange(len(said), device=self.device).split(256):
            read = {name: value[part] for name, value in texts.items()}
            embeds.append(self.head.get_text_features(**read).pooler_output)
        images, embeds = (nn.functional.normalize(torch.cat(part), dim=-1) for part in (images, embeds))
        similarity = images @ embeds.t()
        scores = rerank_scores(self.head, torch.cat(tokens), *texts.values(), similarity, task_cfg.k_test)
        if not self.head.rerank_adds_similarity:
            both = zip(scores, (similarity, similarity.t()))
            scores = [torch.where(table == UNRANKED, table, table + near) for table, near in both]
        return tuple(table.cpu().numpy() for table in scores)


class ClipFeatureExtractor(LavisModel):
    """LAVIS's `clip_feature_extractor`."""

    def texts(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        return dict(self.processor(text=self._given(samples, "text_input")).to(self.device))

    def forward(self, samples: dict[str, Any]) -> Any:
        """The contrastive loss of images and their texts, among the model's outputs."""
        return self.head(pixel_values=self.images(samples), return_loss=True, **self.texts(samples))

    def extract_features(self, samples: dict[str, Any]) -> FusionFeatures | torch.Tensor:
        """Of both: `image_embeds`, `text_embeds` `[n, dim]`, and the same of length 1 as `*_embeds_proj`; of images or
        texts alone: their embeddings."""
        embeds = {}
        if samples.get("image") is not None:
            embeds["image_embeds"] = self.head.get_image_features(self.images(samples)).pooler_output
        if samples.get("text_input") is not None or not embeds:
            embeds["text_embeds"] = self.head.get_text_features(**self.texts(samples)).pooler_output
        if len(embeds) == 1:
            return next(iter(embeds.values()))
        units = {f"{name}_proj": nn.functional.normalize(value, dim=-1) for name, value in embeds.items()}
        return FusionFeatures(**embeds, **units)
