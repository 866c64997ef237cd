"""Heads that choose among classes, called as LAVIS's are."""

from typing import Any

import torch

from hfvlm.lavis.adapters import LavisModel


class Classifier(LavisModel):
    """LAVIS's `albef_classification`: of an image and a text."""

    #: samples' images -> the head's
    seen = {"image": "pixel_values"}
    #: over which alpha grows
    warmup_epochs = 1

    def forward(self, samples: dict[str, Any], is_train: bool = True) -> Any:
        """The loss (`loss`, `loss_cls`) of "label" `[texts]`, among the head's outputs.

        Args:
            samples: the images, "text_input", one an image, and "label"; "epoch", "iters" and "num_iters_per_epoch"
                say how far alpha has grown.
            is_train: False: as `predict`.
        """
        if not is_train:
            return self.predict(samples)
        labels = torch.as_tensor(self._given(samples, "label"), device=self.device)
        return self.head(**self._inputs(samples), labels=labels, alpha=self.alpha(samples, self.warmup_epochs))

    @torch.no_grad()
    def predict(self, samples: dict[str, Any]) -> dict[str, Any]:
        """`predictions`: logits `[texts, classes]`; `targets`: the samples' "label", None if they have none."""
        return {"predictions": self.head(**self._inputs(samples)).logits, "targets": samples.get("label")}

    def _inputs(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {**{ours: self.images(samples, name) for name, ours in self.seen.items()}, **self.texts(samples)}


class Reasoner(Classifier):
    """LAVIS's `albef_nlvr` and `blip_nlvr`: of the samples' "image0" and "image1", and a statement."""

    seen = {"image0": "pixel_values", "image1": "pixel_values_second"}
    warmup_epochs = 2
