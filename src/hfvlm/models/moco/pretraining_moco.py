"""MoCo's objective, versions 1 to 3: an encoder learns to find an image's other view among keys of a slower copy.

The papers, the original code and its licence: see `modeling_moco`.
"""

import math
from dataclasses import dataclass

import torch
from torch import distributed, nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from hfvlm.losses.contrastive import full_precision, similarity_logits
from hfvlm.losses.gather import gather, own_rows, row_counts, several_processes
from hfvlm.losses.momentum import MomentumUpdater, momentum_copy, start_teacher
from hfvlm.losses.pairs import precise
from hfvlm.losses.queue import NegativeQueue
from hfvlm.models.moco.configuration_moco import MocoConfig
from hfvlm.models.moco.modeling_moco import MocoPreTrainedModel
from hfvlm.nn.linear import Linear


@dataclass
class MocoOutput(ModelOutput):
    """What pretraining returns; of one view in evaluation, only `query_embeds`.

    Args:
        loss: scalar; `loss_contrast` is the same, by its name.
        logits: similarities over the temperature. `[images, 1 + queue_size]`, the image's other view first, or with
            the symmetric loss `[2 * images, images of all processes]`, one half a direction.
        query_embeds, key_embeds: `[images, projection_dim]` of length 1 (`[2 * images, ...]` with the symmetric loss),
            by the encoder and by its momentum copy.
        hidden_states, attentions: the encoder's, a tensor a layer, where asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_contrast: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    query_embeds: torch.FloatTensor | None = None
    key_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def projection(config: MocoConfig, inputs: int, layers: int, last_norm: bool) -> nn.Sequential:
    """Linear layers with ReLU between them; the symmetric objective's have batch norm instead of biases.

    Args:
        inputs: numbers that go in; `config.projection_dim` come out.
        last_norm: a batch norm without weights behind the last layer, where there are batch norms.
    """
    normed = config.objective == "symmetric"
    hidden, parts = config.projection_hidden_size or config.feature_size, []
    for layer in range(layers):
        last = layer == layers - 1
        outputs = config.projection_dim if last else hidden
        parts.append(Linear(inputs, outputs, bias=not normed))
        if normed and (last_norm or not last):
            parts.append(nn.BatchNorm1d(outputs, affine=not last))
        if not last:
            parts.append(nn.ReLU())
        inputs = outputs
    return nn.Sequential(*parts)


def shuffle_order(rows: int, device: torch.device) -> torch.Tensor:
    """A permutation of the joined batch's rows, drawn by the first process for all: `[rows]`."""
    order = torch.randperm(rows, device=device)
    distributed.broadcast(order, src=0)
    return order


class MocoForPreTraining(MocoPreTrainedModel):
    """The encoder, its momentum copy (`teacher_*`), and the contrast between two views of each image.

    In training each forward pass takes both views. The momentum copy moves once for every change of the encoder's
    weights, and the queue takes in the batch's keys; both are saved with the model. Evaluation leaves them alone.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    trainable_stages = {"all": ("vision_model.", "projection.", "predictor.")}
    accepts_loss_kwargs = False  # a mean over the images: `Trainer` averages accumulated batches itself

    def __init__(self, config: MocoConfig, vision_model: nn.Module | None = None):
        super().__init__(config, vision_model)
        symmetric = config.objective == "symmetric"
        self.projection = projection(config, config.feature_size, config.projection_layers, last_norm=True)
        self.predictor = projection(config, config.projection_dim, 2, config.predictor_norm) if symmetric else None
        self.teacher_vision_model = momentum_copy(self.vision_model)
        self.teacher_projection = momentum_copy(self.projection)
        self.queue = None if symmetric else NegativeQueue(config.queue_size, config.projection_dim)
        if config.momentum_steps is not None:
            self.register_buffer("teacher_step", torch.zeros((), dtype=torch.long))
        self._updater = MomentumUpdater()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=(3 * module.in_features) ** -0.5)  # the scale of torch's own
        elif isinstance(module, NegativeQueue):
            module.reset_parameters()
        elif isinstance(module, MocoForPreTraining):  # comes last: the encoder has its weights, also loaded ones
            for student, teacher in self._pairs():
                start_teacher(student, teacher)
            if self.config.momentum_steps is not None:
                init.zeros_(module.teacher_step)

    def _pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """The trained parts, each with its momentum copy."""
        return ((self.vision_model, self.teacher_vision_model), (self.projection, self.teacher_projection))

    def never_trained(self) -> list[nn.Module]:
        """The momentum copy, and where asked for a ViT's patch projection."""
        parts = [teacher for _, teacher in self._pairs()]
        if self.config.freeze_patch_projection and hasattr(self.vision_model, "patch_embed"):
            parts.append(self.vision_model.patch_embed)
        return parts

    def train(self, mode: bool = True) -> "MocoForPreTraining":
        super().train(mode)
        for _, teacher in self._pairs():
            teacher.train(mode)  # its batch norm works as the encoder's does, though nothing of it trains
        return self

    def momentum(self) -> float:
        """The share of itself that the momentum copy keeps at its next step."""
        config = self.config
        if config.momentum_steps is None:
            return config.momentum
        done = min(self.teacher_step.item() / config.momentum_steps, 1.0)
        return 1.0 - (1.0 - config.momentum) * (1.0 + math.cos(math.pi * done)) / 2

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_key: torch.FloatTensor | None = None,
        return_loss: bool = True,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> MocoOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`, one view of each image.
            pixel_values_key: the other view of the same images, in the same order; may be left out in evaluation, for
                `query_embeds` alone.
            return_loss: off: only `query_embeds`.
            interpolate_pos_encoding: take other sizes, too.

        Raises:
            ValueError: one view only in training, or views of different numbers of images.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs)
        self._check_views(pixel_values, pixel_values_key, return_loss)
        outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        queries = self._query(outputs.pooler_output)
        made = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        if pixel_values_key is None or not return_loss:
            return MocoOutput(query_embeds=queries, **made)
        if self.config.objective == "queue":
            keys = self._keys(pixel_values_key, interpolate_pos_encoding)
            logits = self._queue_logits(queries, keys)
            loss = nn.functional.cross_entropy(logits, logits.new_zeros(logits.shape[0], dtype=torch.long))
        else:
            other = self.get_image_features(pixel_values_key, interpolate_pos_encoding).pooler_output
            both = [queries, self._query(other)]
            keys = [self._keys(view, interpolate_pos_encoding) for view in (pixel_values_key, pixel_values)]
            logits, loss = self._symmetric(both, keys)
            queries, keys = torch.cat(both), torch.cat(keys)
        return MocoOutput(loss=loss, loss_contrast=loss, logits=logits, query_embeds=queries, key_embeds=keys, **made)

    def _check_views(self, first: torch.Tensor, second: torch.Tensor | None, return_loss: bool) -> None:
        if second is None:
            if self.training and return_loss:
                raise ValueError(
                    "pretraining contrasts two views of each image: pass pixel_values_key too (the processor draws "
                    "both with views=True)"
                )
        elif isinstance(first, torch.Tensor) and first.shape[0] != second.shape[0]:
            raise ValueError(
                f"pixel_values has {first.shape[0]} images and pixel_values_key {second.shape[0]}: they must be two "
                "views of the same images"
            )

    def _query(self, features: torch.Tensor) -> torch.Tensor:
        """`[images, feature_size]` -> `[images, projection_dim]` of length 1."""
        projected = self.projection(features)
        if self.predictor is not None:
            projected = self.predictor(projected)
        return nn.functional.normalize(projected, dim=-1)

    @torch.no_grad()
    def _keys(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        """The momentum copy's `[images, projection_dim]` of length 1; in training it moves first."""
        if self.training and self._updater(self._pairs(), self.momentum()) and self.config.momentum_steps is not None:
            self.teacher_step += 1
        order = None
        shuffles = self.config.objective == "queue" and self.config.shuffle_batch_norm and self.training
        if shuffles and several_processes():
            counts = row_counts(len(pixel_values), pixel_values.device)
            pixel_values = gather(pixel_values, with_grad=False, counts=counts)
            order = shuffle_order(len(pixel_values), pixel_values.device)
            pixel_values = pixel_values[order[own_rows(counts)]]
        outputs = self.teacher_vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        keys = nn.functional.normalize(self.teacher_projection(outputs.pooler_output), dim=-1)
        if order is not None:
            keys = gather(keys, with_grad=False, counts=counts)[order.argsort()[own_rows(counts)]]
        return keys

    def _queue_logits(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """`[images, 1 + queue_size]`, against the queue as it is; in training it then takes in the keys."""
        queries = precise(queries)
        # a copy in training: the next keys overwrite the queue before backward
        negatives = self.queue.features.to(queries.dtype, copy=self.training)
        with full_precision(queries.device):
            positive = (queries * keys.to(queries.dtype)).sum(dim=1, keepdim=True)
            logits = torch.cat([positive, queries @ negatives.t()], dim=1) / self.config.temperature
        if self.training:
            self.queue.push(keys)
        return logits

    def _symmetric(self, queries: list[torch.Tensor], keys: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[2 * images, images of all processes]` and the loss: each view asks for the other one's key.

        Args:
            queries, keys: `[images, projection_dim]` for each of the two directions.
        """
        temperature = self.config.temperature
        counts = row_counts(queries[0].shape[0], queries[0].device)
        own = own_rows(counts)
        targets = torch.arange(own.start, own.stop, device=queries[0].device)
        keys = [gather(key, with_grad=False, counts=counts) for key in keys]
        with full_precision(targets.device):
            logits = [similarity_logits(precise(q), precise(k), 1 / temperature) for q, k in zip(queries, keys)]
            losses = [nn.functional.cross_entropy(part, targets) for part in logits]
        return torch.cat(logits), 2 * temperature * sum(losses)
