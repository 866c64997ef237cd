"""What ALBEF and BLIP learn from pairs: contrast with a momentum teacher and a queue, matching with hard negatives.

Align before Fuse, https://arxiv.org/abs/2107.07651; BLIP, https://arxiv.org/abs/2201.12086.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.bert import BertTower
from hfvlm.fusion import FusionPreTrainedModel, first_positions, first_tokens, fused_fields
from hfvlm.fusion_config import FusionConfig
from hfvlm.losses.contrastive import contrastive_loss, full_precision
from hfvlm.losses.gather import gather, gather_texts, own_rows, row_counts, several_processes
from hfvlm.losses.matching import choose_negatives, matching_loss, negative_weights
from hfvlm.losses.momentum import as_kept
from hfvlm.losses.momentum_contrast import momentum_contrast
from hfvlm.losses.pairs import precise
from hfvlm.losses.queue import NegativeQueue
from hfvlm.momentum_teacher import MomentumTeacherMixin
from hfvlm.nn.linear import Linear
from hfvlm.outputs import FusionOutput


logger = logging.get_logger(__name__)


@dataclass
class Step:
    """What a training step knows; `n` images, `rows` texts, an image's together, `all` those of every process.

    Args:
        image_tokens: `[n, tokens, width]`; `image_of_row` `[rows]` is each text's among them.
        input_ids, attention_mask: `[rows, length]`.
        text_states: `[rows, length, hidden_size]`, read without the image.
        image_embeds, text_embeds: `[rows, projection_dim]`, of length 1.
        teacher_image_tokens: as `image_tokens`; None without a teacher.
        alpha: the teacher's say.
        across: rows of all processes count.
        counts: rows of each process.
    """

    image_tokens: torch.Tensor
    image_of_row: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    text_states: torch.Tensor
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    alpha: float
    across: bool
    counts: list[int]
    teacher_image_tokens: torch.Tensor | None = None


@dataclass
class MoreRows:
    """Texts that are read with their images in the same pass as the matching pairs: one of each row of the step.

    Args:
        input_ids: `[rows, length]`.
        labels: `[rows, length]`, what is learned of them; -100: nothing.
        causal: they are read causally.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    causal: bool = False


class FusionForImageTextRetrieval(MomentumTeacherMixin, FusionPreTrainedModel):
    """Contrast and matching; the base of the retrieval and the pretraining heads.

    In training each forward pass takes pairs. The teacher moves once for every change of the weights, and the queue
    takes in the batch; both are saved with the model. Evaluation leaves them alone, and repeats itself: its negatives
    are the likeliest.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    accepts_loss_kwargs = False  # a mean over pairs: `Trainer` averages accumulated batches itself
    #: which self-attentions the text tower has
    direction = "bidirectional"
    #: where the similarities come from that negatives are drawn by: the "teacher"'s keys, or the "student"'s
    negatives_by = "teacher"
    #: added to each negative's probability
    negative_offset = 0.0
    #: whether a pair's score, when the nearest are judged again, is the judgement plus the similarity
    rerank_adds_similarity = False
    #: kept within these at every training step; None: not at all
    temperature_range: tuple[float, float] | None = (0.001, 0.5)

    def __init__(
        self, config: FusionConfig, vision_model: nn.Module | None = None, text_model: BertTower | None = None
    ):
        super().__init__(config)
        if not config.projection_dim:
            raise ValueError("projection_dim must be positive: this head compares images and texts in that space")
        self._build_towers(vision_model, text_model, self.direction)
        self.temp = nn.Parameter(
            torch.full((1,), config.initial_temperature)
        )  # FSDP refuses parameters without a dimension
        self.itm_head = Linear(config.text_config.hidden_size, 2)
        self._build_more()
        if config.momentum is not None:
            self.image_queue = NegativeQueue(config.queue_size, config.projection_dim, with_ids=True)
            self.text_queue = NegativeQueue(config.queue_size, config.projection_dim)
        self.post_init()

    def _build_more(self) -> None:
        """What a head has beside; the teacher is built last, of all that there is."""
        self._build_teacher("vision_model", "text_model", "vision_proj", "text_proj")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NegativeQueue):
            module.reset_parameters()
        elif isinstance(module, FusionForImageTextRetrieval):  # comes last: the student has its weights, also loaded
            module._start_teacher()

    def scale_and_bias(self) -> tuple[torch.Tensor, None]:
        """What similarities are multiplied by; nothing is added to them."""
        return 1 / self.temp, None

    def match(
        self,
        image_embeds: torch.Tensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        memory_index: torch.LongTensor | None = None,
        text_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """No match and match of texts and images that are encoded already: `[texts, 2]`.

        Args:
            image_embeds: `[images, tokens, width]`, `last_hidden_state` of `get_image_features`.
            input_ids, attention_mask, memory_index, text_embeds: as in `fuse`.
        """
        first = first_positions(input_ids if text_embeds is None else text_embeds, attention_mask)
        fused = self.fuse(image_embeds, input_ids, attention_mask, text_embeds, memory_index, only_position=first)
        return self.itm_head(fused.last_hidden_state[:, 0])

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        alpha: float | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> FusionOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`.
            input_ids, attention_mask: `[images * g, length]`: `g` texts an image, an image's texts together, padded on
                the right.
            image_ids: `[images]`, long, equal for rows that show the same image: they are no negatives of each other.
            return_loss: None: in training.
            alpha: the teacher's say in the targets, 0 to 1; None: the config's.
            interpolate_pos_encoding: take images of another size.

        Raises:
            ValueError: neither images nor texts; a loss of texts that cannot be shared out among the images; an alpha
                out of range; a queue smaller than the batch.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs, self.text_model.forward)
        if input_ids is None and pixel_values is None:
            raise ValueError("pass pixel_values, input_ids, or both: there is nothing to encode")
        if input_ids is not None and attention_mask is None:
            attention_mask = torch.ones(input_ids.shape[:2], dtype=torch.long, device=input_ids.device)
        alone = input_ids is None or pixel_values is None
        if return_loss and alone:
            raise ValueError("return_loss compares images with texts: pass both pixel_values and input_ids")
        return_loss = self.training and not alone if return_loss is None else return_loss
        vision = text = None
        if pixel_values is not None:
            vision = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        if return_loss:
            self._check_pairs(len(pixel_values), len(input_ids), image_ids)
        if input_ids is not None:
            text = self.get_text_features(input_ids, attention_mask, **kwargs)
        embeds = [
            None if part is None else nn.functional.normalize(part.pooler_output, dim=-1) for part in (vision, text)
        ]
        outputs = FusionOutput(
            image_embeds=embeds[0], text_embeds=embeds[1], vision_model_output=vision, text_model_output=text
        )
        if alone:
            part = vision or text
            outputs.last_hidden_state, outputs.pooler_output = part.last_hidden_state, part.pooler_output
        elif return_loss:
            self._learn(outputs, pixel_values, input_ids, attention_mask, image_ids, alpha, interpolate_pos_encoding)
        else:
            self._compare(outputs, input_ids, attention_mask, **kwargs)
        return FusionOutput(**outputs)  # in the order of its fields

    @staticmethod
    def _check_pairs(images: int, texts: int, image_ids: torch.Tensor | None) -> None:
        if not images or not texts or texts % images:
            raise ValueError(
                f"the loss pairs each image with as many texts as every other, got {images} images and {texts} texts; "
                "pass return_loss=False to compare them all"
            )
        if image_ids is not None and image_ids.shape != (images,):
            raise ValueError(f"image_ids must be [{images}], one an image, got {list(image_ids.shape)}")

    def _compare(self, outputs: FusionOutput, input_ids, attention_mask, **kwargs) -> None:
        """Fills in the similarities, and for texts that are shared out among the images how well each fits."""
        with full_precision(input_ids.device):
            outputs.logits_per_image = precise(outputs.image_embeds) @ precise(outputs.text_embeds).t() / self.temp
        outputs.logits_per_text = outputs.logits_per_image.t()
        tokens = outputs.vision_model_output.last_hidden_state
        if input_ids.shape[0] % tokens.shape[0] == 0:
            read = outputs.text_model_output.last_hidden_state
            for name, value in fused_fields(self.fuse(tokens, input_ids, attention_mask, read, **kwargs)).items():
                outputs[name] = value
            outputs.itm_logits = self.itm_head(first_tokens(outputs.last_hidden_state, attention_mask))

    def _learn(self, outputs: FusionOutput, pixels, input_ids, attention_mask, image_ids, alpha, resize) -> None:
        """Fills in the losses."""
        alpha = self._choose_alpha(alpha)
        images, rows = len(pixels), len(input_ids)
        of_row = torch.arange(rows, device=input_ids.device) // (rows // images)
        across = self.training and several_processes()  # a process that evaluates alone would wait for the others
        counts = row_counts(rows, input_ids.device) if across else [rows]
        step = Step(
            outputs.vision_model_output.last_hidden_state,
            of_row,
            input_ids,
            attention_mask,
            outputs.text_model_output.last_hidden_state,
            outputs.image_embeds[of_row],
            outputs.text_embeds,
            alpha,
            across,
            counts,
        )
        row_ids = self._row_ids(step, image_ids)
        if self.training and self.temperature_range is not None:
            with torch.no_grad(), as_kept(self):
                self.temp.clamp_(*self.temperature_range)
        if self.config.momentum is None:
            weights = self._contrast(outputs, step, row_ids)
        else:
            known = image_ids is not None
            weights = self._contrast_with_teacher(outputs, step, row_ids, known, pixels, resize)
        more = self._more_rows(step)
        outputs.loss_itm, states = self._match(outputs, step, more, *weights)
        for name, loss in ({} if more is None else self._language(step, more, states)).items():
            outputs[name] = loss
        parts = (outputs.loss_itc, outputs.loss_itm, outputs.loss_mlm, outputs.loss_lm)
        outputs.loss = sum(part for part in parts if part is not None)

    def _row_ids(self, step: Step, image_ids: torch.Tensor | None) -> torch.Tensor | None:
        """`[rows]`: the image of each row; None if each row has its own."""
        if image_ids is not None:
            return image_ids[step.image_of_row]
        if len(step.image_tokens) == len(step.input_ids):
            return None
        first = own_rows(step.counts).start if step.across else 0  # as many numbers as rows keep processes apart
        return step.image_of_row + first

    def _contrast(self, outputs: FusionOutput, step: Step, ids: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """The contrast of the batch alone; the weights of negative images and of negative texts."""
        options = {"image_ids": ids, "gather": step.across}
        outputs.loss_itc = contrastive_loss(step.image_embeds, step.text_embeds, 1 / self.temp, **options)
        if ids is not None and step.across:
            ids = gather(ids, with_grad=False, counts=step.counts)
        return self._weights(step, ids)

    def _weights(self, step: Step, ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """By the student's own similarities: `[rows, all]` for images, then for texts."""
        own = own_rows(step.counts) if step.across else slice(0, len(step.input_ids))
        positives = torch.arange(own.start, own.stop, device=step.input_ids.device)
        with torch.no_grad(), full_precision(step.input_ids.device):
            embeds = [precise(rows) for rows in (step.image_embeds, step.text_embeds)]
            keys = [gather(rows, with_grad=False, counts=step.counts) if step.across else rows for rows in embeds]
            to_images, to_texts = (embeds[1] @ keys[0].t() / self.temp, embeds[0] @ keys[1].t() / self.temp)
        return tuple(
            negative_weights(logits, positives, ids, self.negative_offset) for logits in (to_images, to_texts)
        )

    def _contrast_with_teacher(
        self, outputs: FusionOutput, step: Step, ids, known: bool, pixels, resize
    ) -> tuple[torch.Tensor, ...]:
        """The contrast with the teacher's keys and the queue, which then takes them in; weights as `_contrast`.

        `known`: the ids mean the same images in other batches, too, and stay with the rows in the queue. Rows that are
        evaluated may be of another set, where the same ids are other images.
        """
        size, batch = self.config.queue_size, sum(step.counts)
        if self.training and batch > size:
            raise ValueError(
                f"queue_size ({size}) must be at least the {batch} pairs of a batch: enlarge it, or take fewer"
            )
        with torch.no_grad():
            self._move_teacher()
            vision = self.teacher_vision_model(pixels, interpolate_pos_encoding=resize)
            step.teacher_image_tokens = vision.last_hidden_state
            layers = (0, self.fusion_layer) if self.fusion_layer else None
            states = self.teacher_text_model(
                step.input_ids, attention_mask=step.attention_mask, layers=layers
            ).last_hidden_state
            pooled = first_tokens(states, step.attention_mask)
            taught = [
                self.teacher_vision_proj(vision.pooler_output)[step.image_of_row],
                self.teacher_text_proj(pooled),
            ]
            taught = [nn.functional.normalize(rows, dim=-1) for rows in taught]
        contrast = momentum_contrast(
            step.image_embeds,
            step.text_embeds,
            *taught,
            self.temp,
            alpha=step.alpha,
            queue=(
                self.image_queue.features,
                self.text_queue.features,
                self.image_queue.ids if self.training else None,
            ),
            image_ids=ids,
            across=step.across,
        )
        outputs.loss_itc = contrast.loss
        outputs.logits_per_image, outputs.logits_per_text = contrast.logits_per_image, contrast.logits_per_text
        if self.training:
            self.image_queue.push(taught[0], ids if known else None)
            self.text_queue.push(taught[1])
        if self.negatives_by == "student":
            return self._weights(step, contrast.ids)
        positives = torch.arange(contrast.own.start, contrast.own.stop, device=step.input_ids.device)
        return tuple(
            negative_weights(logits[:, :batch], positives, contrast.ids, self.negative_offset)
            for logits in (contrast.logits_per_text, contrast.logits_per_image)
        )

    def _match(
        self,
        outputs: FusionOutput,
        step: Step,
        more: MoreRows | None,
        image_weights: torch.Tensor,
        text_weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The matching loss, and the states `[rows, length, hidden_size]` of `more`, read in the same pass."""
        negative_images = choose_negatives(image_weights, self.training)
        negative_texts = None if negative_images is None else choose_negatives(text_weights, self.training)
        rows = len(step.input_ids)
        texts = self._texts(step)
        mask, tokens, of_row, all_of_row = step.attention_mask, step.image_tokens, step.image_of_row, step.image_of_row
        all_texts, all_mask = texts, mask
        if step.across:
            all_texts, all_mask = gather_texts(texts, mask, step.counts, with_grad=texts.is_floating_point())
            images = row_counts(len(tokens), tokens.device)
            of_row = of_row + own_rows(images).start
            all_of_row = gather(of_row, with_grad=False, counts=step.counts)
            tokens = gather(tokens, counts=images)
            own = own_rows(step.counts)
            texts, mask = all_texts[own], all_mask[own]
        index, masks = [of_row], [mask]
        parts = [texts]
        if negative_images is None:
            logger.warning_once(
                "all images of a batch are the same: there is no wrong partner to tell from the right one, so such "
                "batches do not count in loss_itm"
            )
        else:
            index += [all_of_row[negative_images], of_row]
            parts += [texts, all_texts[negative_texts]]
            masks += [mask, all_mask[negative_texts]]
        causal = 0
        if more is not None:
            lacking = texts.shape[1] - more.input_ids.shape[1]
            ids = nn.functional.pad(more.input_ids, (0, lacking), value=self.config.text_config.pad_token_id)
            parts.append(ids if not self.fusion_layer else self._read(ids, mask))
            index, masks, causal = [*index, of_row], [*masks, mask], rows if more.causal else 0
        index = torch.cat(index)
        if step.across:  # only the images that this process needs
            used, index = index.unique(return_inverse=True)
            tokens = tokens[used]
        options = {"text_embeds" if self.fusion_layer else "input_ids": torch.cat(parts)}
        if self.direction == "both":
            options["causal_rows"] = causal
        states = self._fuse_prepared(tokens, torch.cat(masks), index, **options)
        pairs = len(states) - (rows if more is not None else 0)
        logits = self.itm_head(first_tokens(states[:pairs], torch.cat(masks)[:pairs]))
        if negative_images is None:
            loss = 0.0 * logits.sum()
        else:
            outputs.itm_logits = logits
            loss = matching_loss(logits, len(step.counts) / sum(step.counts) / 3)
        return loss, None if more is None else states[pairs:, : more.input_ids.shape[1]]

    def _texts(self, step: Step) -> torch.Tensor:
        """The texts as fusion takes them: states where it goes on from these, else ids."""
        if self.fusion_layer:
            return step.text_states
        return self.matching_ids(step.input_ids, step.attention_mask)

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.text_model(
            input_ids, attention_mask=attention_mask, layers=(0, self.fusion_layer)
        ).last_hidden_state

    def _fuse_prepared(self, tokens, mask, index, text_embeds=None, input_ids=None, **options: Any) -> torch.Tensor:
        """As `fuse`, of what `_texts` made."""
        options |= {"attention_mask": mask, "encoder_hidden_states": tokens, "memory_index": index}
        if text_embeds is not None:
            options |= {"hidden_states": text_embeds, "layers": (self.fusion_layer, len(self.text_model.layers))}
        return self.text_model(input_ids, **options).last_hidden_state

    def _more_rows(self, step: Step) -> MoreRows | None:
        """What a pretraining head reads in the same pass."""
        return None

    def _language(self, step: Step, more: MoreRows, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """The losses of `_more_rows`, by name."""
        raise NotImplementedError
