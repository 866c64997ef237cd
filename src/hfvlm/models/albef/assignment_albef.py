"""ALBEF's pretraining for two images: texts are assigned to one of two, or to neither.

The paper, the original code and its licence: see `modeling_albef`.
"""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.bert import BertTower
from hfvlm.encoders.configuration import pooled_size
from hfvlm.fusion import first_tokens, fused_fields
from hfvlm.losses.text_assignment import assigned, assignment_loss, assignment_weights, draw_pairs
from hfvlm.models.albef.configuration_albef import AlbefConfig
from hfvlm.models.albef.modeling_albef import NOT_ASSIGNING, AlbefPreTrainedModel
from hfvlm.nn.linear import Linear
from hfvlm.outputs import FusionClassificationOutput


class AlbefForTextAssignment(AlbefPreTrainedModel):
    """Learns to read two images from images and their texts alone: which of two is a text about, or neither?

    What it is trained on a pretraining folder for, and what its folder is a start for, is visual reasoning (NLVR2).
    The image projection says how similar images are, for drawing pairs, and is not trained.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.

    Raises:
        ValueError: a config without a joint space.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_ASSIGNING]
    accepts_loss_kwargs = False  # a mean over pairs: `Trainer` averages accumulated batches itself

    def __init__(
        self, config: AlbefConfig, vision_model: nn.Module | None = None, text_model: BertTower | None = None
    ):
        super().__init__(config)
        if not config.projection_dim:
            raise ValueError("projection_dim must be above 0: pairs of images are drawn by their similarity there")
        self._build_towers(vision_model, text_model, projected=False, pairing="alternate")
        self.vision_proj = Linear(pooled_size(config.vision_config), config.projection_dim)
        self.ta_head = Linear(config.text_config.hidden_size, 3)
        self.post_init()

    def never_trained(self) -> list[nn.Module]:
        """The image projection: what is drawn has no gradient."""
        return [*super().never_trained(), self.vision_proj]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        image_pairs: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> FusionClassificationOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`.
            input_ids, attention_mask: `[images * g, length]`: `g` texts an image, an image's texts together.
            image_ids: `[images]`, long, equal for rows that show the same image: it is not drawn beside itself.
            image_pairs: `[texts, 2]`, long: the two images, by number, that each text is read with. None: with a loss
                they are drawn, without one each text is read with its own image twice.
            return_loss: None: in training.
            interpolate_pos_encoding: take images of another size.

        Returns:
            `logits` `[texts, 3]`: about the first image, the second, neither; `image_pairs`, those that were read.

        Raises:
            ValueError: no images or no texts; a loss of texts that cannot be shared out among the images; image ids
                of another shape; pairs of another shape, or of images that do not exist.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs, self.text_model.forward)
        if pixel_values is None or input_ids is None:
            raise ValueError("a text is assigned to one of two images: pass both pixel_values and input_ids")
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        tokens = vision.last_hidden_state
        labels = None
        if self.training if return_loss is None else return_loss:
            own = self._own_images(len(tokens), input_ids, image_ids)
            if image_pairs is None:
                with torch.no_grad():
                    embeds = nn.functional.normalize(self.vision_proj(vision.pooler_output), dim=-1)
                image_pairs, labels = draw_pairs(assignment_weights(embeds, image_ids), own, self.training)
            else:
                shown = self._checked(image_pairs, len(tokens), input_ids)
                labels = assigned(shown, own) if image_ids is None else assigned(image_ids[shown], image_ids[own])
        if image_pairs is None:
            memory = tokens.expand(2, *tokens.shape)
        else:
            memory = tokens[self._checked(image_pairs, len(tokens), input_ids).t()]
        fused = self.fuse(memory, input_ids, attention_mask, **kwargs)
        logits = self.ta_head(first_tokens(fused.last_hidden_state, attention_mask))
        loss = None if labels is None else assignment_loss(logits, labels)
        return FusionClassificationOutput(
            loss=loss,
            loss_cls=loss,
            logits=logits,
            image_pairs=image_pairs,
            vision_model_output=vision,
            **fused_fields(fused),
        )

    @staticmethod
    def _own_images(images: int, input_ids: torch.Tensor, image_ids: torch.Tensor | None) -> torch.Tensor:
        """`[texts]`: the image that each text is about."""
        texts = len(input_ids)
        if not images or not texts or texts % images:
            raise ValueError(
                f"the loss draws images for as many texts an image as for every other, got {images} images and "
                f"{texts} texts; pass return_loss=False to read them"
            )
        if image_ids is not None and image_ids.shape != (images,):
            raise ValueError(f"image_ids must be [{images}], one an image, got {list(image_ids.shape)}")
        return torch.arange(texts, device=input_ids.device) // (texts // images)

    @staticmethod
    def _checked(pairs: torch.Tensor, images: int, input_ids: torch.Tensor) -> torch.Tensor:
        if pairs.shape != (len(input_ids), 2):
            raise ValueError(f"image_pairs must be [{len(input_ids)}, 2], two images a text, got {list(pairs.shape)}")
        if pairs.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = pairs.min().item(), pairs.max().item()
            if low < 0 or high >= images:
                raise ValueError(f"image_pairs must be between 0 and {images - 1}, got {low} to {high}")
        return pairs
