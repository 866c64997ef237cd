"""BLIP's objectives: contrast, matching and language modelling by one text tower, with a momentum teacher.

The paper, the original code and its licence: see `modeling_blip`.
"""

import torch
from torch import nn

from hfvlm.encoders.bert import BertLmHead
from hfvlm.encoders.build import bert_tower
from hfvlm.fusion import first_positions
from hfvlm.fusion_training import FusionForImageTextRetrieval, MoreRows, Step
from hfvlm.losses.gather import shared_count
from hfvlm.models.blip.modeling_blip import NOT_MATCHING, BlipPreTrainedModel


class BlipForImageTextRetrieval(BlipPreTrainedModel, FusionForImageTextRetrieval):
    """Finds images by text and texts by image: contrast of the two towers, and a judgement of each pair.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_MATCHING]
    negatives_by = "student"


class BlipForPreTraining(BlipPreTrainedModel, FusionForImageTextRetrieval):
    """Learns from images and their texts by contrast, matching and language modelling.

    The matching pairs and the texts to be written go through the text tower together: its cross-attention projects an
    image's keys and values once for all of them.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    direction = "both"
    negative_offset = 1e-4
    _tied_weights_keys = {"lm_head.decoder.weight": "text_model.embeddings.word.weight"}

    def _build_more(self) -> None:
        self.lm_head = BertLmHead(self.config.text_config)
        encoder = bert_tower(self.config.text_config, "bidirectional")  # the teacher writes nothing
        self._build_teacher("vision_model", "text_model", "vision_proj", "text_proj", text_model=encoder)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    def _more_rows(self, step: Step) -> MoreRows:
        first = first_positions(step.input_ids, step.attention_mask)[:, None]
        ids = step.input_ids.scatter(1, first, self.config.text_config.bos_token_id)
        return MoreRows(ids, ids.masked_fill(step.attention_mask == 0, -100), causal=True)

    def _language(self, step: Step, more: MoreRows, states: torch.Tensor) -> dict[str, torch.Tensor]:
        learned = more.labels[:, 1:] != -100
        targets = more.labels[:, 1:][learned]
        logits = self.lm_head(states[:, :-1][learned])  # the words of nothing else
        count = shared_count(len(targets), targets.device) if step.across else len(targets)
        loss = nn.functional.cross_entropy(
            logits.float(), targets, label_smoothing=self.config.label_smoothing, reduction="sum"
        )
        return {"loss_lm": loss / max(count, 1)}
