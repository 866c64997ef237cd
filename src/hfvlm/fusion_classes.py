"""Fusion models that choose among classes: of an image and a text, or of two images and a text.

Align before Fuse, https://arxiv.org/abs/2107.07651, which listens to a momentum teacher here, too; BLIP,
https://arxiv.org/abs/2201.12086.
"""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.bert import BertTower
from hfvlm.fusion import FusionPreTrainedModel, first_tokens, fused_fields
from hfvlm.fusion_config import FusionConfig
from hfvlm.losses.classification import classification_loss
from hfvlm.losses.momentum_contrast import soft_cross_entropy
from hfvlm.momentum_teacher import MomentumTeacherMixin
from hfvlm.nn.linear import Linear
from hfvlm.outputs import FusionClassificationOutput


def class_head(width: int, classes: int) -> nn.Sequential:
    """`[rows, width]` -> `[rows, classes]`, by way of a hidden layer."""
    return nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, classes))


class FusionForImageClassification(MomentumTeacherMixin, FusionPreTrainedModel):
    """Chooses the class of an image and a text, such as whether the one entails the other.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    #: whether a momentum teacher softens the targets
    distils = True
    #: how the text tower reads two images; None: it reads one
    pairing: str | None = None

    def __init__(
        self, config: FusionConfig, vision_model: nn.Module | None = None, text_model: BertTower | None = None
    ):
        super().__init__(config)
        self._build_towers(vision_model, text_model, projected=False, pairing=self.pairing)
        self.cls_head = class_head(config.text_config.hidden_size, self.classes)
        self._build_teacher(*(("vision_model", "text_model", "cls_head") if self.distils else ()))
        self.post_init()

    @property
    def classes(self) -> int:
        return self.config.num_labels

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FusionForImageClassification):  # comes last: the student has its weights
            module._start_teacher()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        alpha: float | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> FusionClassificationOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`.
            input_ids, attention_mask: `[images * g, length]`: `g` texts an image, an image's texts together.
            labels: `[images * g]` class numbers; -100: not learned.
            alpha: the teacher's say in the targets, 0 to 1; None: the config's, in training.
            interpolate_pos_encoding: take images of another size.
            num_items_in_batch: labels in the accumulated batch, as `Trainer` counts them.

        Raises:
            ValueError: no image or no text; labels of another shape, or of classes that do not exist.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs, self.text_model.forward)
        return self._judge(
            [pixel_values],
            input_ids,
            attention_mask,
            labels,
            alpha,
            interpolate_pos_encoding,
            num_items_in_batch,
            **kwargs,
        )

    def _judge(
        self, images: list, input_ids, attention_mask, labels, alpha, resize, num_items_in_batch, **kwargs
    ) -> FusionClassificationOutput:
        """As `forward`, of one image a text or of two."""
        if any(pixels is None for pixels in images):
            raise ValueError(
                "pass pixel_values: there is no image to judge the text by"
                if len(images) == 1
                else "pass pixel_values and pixel_values_second: a statement is about two images"
            )
        if input_ids is None:
            raise ValueError("pass input_ids: there is no text to judge the images by")
        seen = [self.vision_model(pixels, interpolate_pos_encoding=resize, **kwargs) for pixels in images]
        fused = self.fuse(self._memory(seen), input_ids, attention_mask, **kwargs)
        logits, loss = self.cls_head(first_tokens(fused.last_hidden_state, attention_mask)), None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
            alpha = self._choose_alpha(alpha)
            if self.taught_parts:
                self._move_teacher()
            if alpha:
                soft = self._teach(images, input_ids, attention_mask, resize)
                learned = labels != -100
                count = learned.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
                taught = soft_cross_entropy(logits[learned], soft[learned]).sum() / count
                loss = (1 - alpha) * loss + alpha * taught
        return FusionClassificationOutput(
            loss=loss,
            loss_cls=loss,
            logits=logits,
            vision_model_output=seen[0],
            second_vision_model_output=seen[1] if len(seen) > 1 else None,
            **fused_fields(fused),
        )

    @staticmethod
    def _memory(seen: list[BaseModelOutputWithPooling]) -> torch.Tensor:
        """What fusion reads: `[images, tokens, width]`, or of two images a text `[2, images, tokens, width]`."""
        tokens = [outputs.last_hidden_state for outputs in seen]
        return tokens[0] if len(tokens) == 1 else torch.stack(tokens)

    @torch.no_grad()
    def _teach(self, images: list, input_ids, attention_mask, resize) -> torch.Tensor:
        """The teacher's logits `[texts, classes]`."""
        seen = [self.teacher_vision_model(pixels, interpolate_pos_encoding=resize) for pixels in images]
        states = self.teacher_text_model(
            self.matching_ids(input_ids, attention_mask),
            attention_mask=attention_mask,
            encoder_hidden_states=self._memory(seen),
        ).last_hidden_state
        return self.teacher_cls_head(first_tokens(states, attention_mask))


class FusionForVisualReasoning(FusionForImageClassification):
    """Tells whether a statement is true of two images (NLVR2).

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_second: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        alpha: float | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> FusionClassificationOutput:
        """
        Args:
            pixel_values, pixel_values_second: `[pairs, channels, h, w]`, the first (left) and the second image.
            input_ids, attention_mask: `[pairs * g, length]`: `g` statements a pair, a pair's together.
            labels: `[pairs * g]` class numbers; -100: not learned.

        The other arguments are those of a classification head.

        Raises:
            ValueError: one image, or unequal numbers of first and second ones; no text; labels of another shape, or of
                classes that do not exist.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs, self.text_model.forward)
        images = [pixel_values, pixel_values_second]
        counts = [pixels.shape[0] for pixels in images if isinstance(pixels, torch.Tensor)]
        if len(counts) == 2 and counts[0] != counts[1]:
            raise ValueError(
                f"pixel_values has {counts[0]} images and pixel_values_second {counts[1]}: a statement is about two"
            )
        return self._judge(
            images, input_ids, attention_mask, labels, alpha, interpolate_pos_encoding, num_items_in_batch, **kwargs
        )
