"""ALBEF's objectives: contrast and matching before fusion and after, and masked words, with a momentum teacher.

The paper, the original code and its licence: see `modeling_albef`.
"""

import torch
from torch import nn

from hfvlm.encoders.bert import BertLmHead
from hfvlm.fusion_training import FusionForImageTextRetrieval, MoreRows, Step
from hfvlm.losses.gather import shared_count
from hfvlm.losses.masked_language import mask_tokens, masked_language_loss
from hfvlm.models.albef.modeling_albef import NOT_MATCHING, AlbefPreTrainedModel


class AlbefForImageTextRetrieval(AlbefPreTrainedModel, FusionForImageTextRetrieval):
    """Finds images by text and texts by image: contrast of the two towers, and a judgement of each pair.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_MATCHING]
    temperature_range = None  # the original keeps it in bounds in pretraining alone


class AlbefForPreTraining(AlbefPreTrainedModel, FusionForImageTextRetrieval):
    """Learns from images and their texts by contrast, matching and masked words.

    The matching pairs and the texts with masked words are fused together: cross-attention projects an image's keys and
    values once for all of them, and words are scored where one is hidden alone.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _tied_weights_keys = {"lm_head.decoder.weight": "text_model.embeddings.word.weight"}

    def _build_more(self) -> None:
        if self.config.momentum is not None:
            words = "teacher_text_model.embeddings.word.weight"
            self._tied_weights_keys = {**self._tied_weights_keys, "teacher_lm_head.decoder.weight": words}
        self.lm_head = BertLmHead(self.config.text_config)
        self._build_teacher("vision_model", "text_model", "vision_proj", "text_proj", "lm_head")

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    def _more_rows(self, step: Step) -> MoreRows:
        config = self.config
        ids, labels = mask_tokens(
            step.input_ids,
            probability=config.mlm_probability,
            mask_token_id=config.mask_token_id,
            vocab_size=config.text_config.vocab_size,
            spared=[i for i in (config.text_config.pad_token_id, config.text_config.bos_token_id) if i is not None],
            # evaluation repeats itself
            generator=None if self.training else torch.Generator().manual_seed(0),
        )
        return MoreRows(ids, labels.masked_fill(step.attention_mask == 0, -100))

    def _language(self, step: Step, more: MoreRows, states: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = more.labels != -100
        labels, soft = more.labels[hidden], None
        if step.alpha:
            with torch.no_grad():
                taught = self.teacher_text_model(
                    more.input_ids,
                    attention_mask=step.attention_mask,
                    encoder_hidden_states=step.teacher_image_tokens,
                ).last_hidden_state
                soft = self.teacher_lm_head(taught[hidden])
        count = shared_count(len(labels), labels.device) if step.across else len(labels)
        loss = masked_language_loss(self.lm_head(states[hidden]), labels, soft, step.alpha, count)
        return {"loss_mlm": loss}
