"""ALBEF answers questions about images, and learns to with a momentum teacher.

The paper, the original code and its licence: see `modeling_albef`.
"""

import torch
from torch import nn

from hfvlm.answering import FusionForVisualQuestionAnswering
from hfvlm.models.albef.modeling_albef import NOT_ANSWERING, AlbefPreTrainedModel
from hfvlm.momentum_teacher import MomentumTeacherMixin


class AlbefForVisualQuestionAnswering(MomentumTeacherMixin, AlbefPreTrainedModel, FusionForVisualQuestionAnswering):
    """Answers questions about images: writes an answer, or ranks given ones.

    In training the teacher moves once for every change of the weights; evaluation leaves it alone.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    first_token_twice = True
    _keys_to_ignore_on_load_unexpected = [*NOT_ANSWERING]

    def _build_more(self) -> None:
        if self.config.momentum is not None:
            words = "teacher_text_decoder.embeddings.word.weight"
            self._tied_weights_keys = {**self._tied_weights_keys, "teacher_lm_head.decoder.weight": words}
        self._build_teacher("vision_model", "text_model", "text_decoder", "lm_head")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefForVisualQuestionAnswering):  # comes last: the student has its weights
            module._start_teacher()

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As stock, the words of both text towers, where there is no teacher.

        Raises:
            ValueError: there is one, whose words would be other ones.
        """
        if self.taught_parts and (args or kwargs):
            raise ValueError(
                "the teacher has words of its own: resize with config.momentum=None (from_pretrained(folder, "
                "momentum=None)), save, and load with a momentum again"
            )
        return super().resize_token_embeddings(*args, **kwargs)

    @torch.no_grad()
    def _taught(
        self, question: tuple[torch.Tensor | None, ...], resize: bool, answers: dict, alpha: float | None
    ) -> tuple[torch.Tensor | None, float]:
        alpha = self._choose_alpha(alpha)
        self._move_teacher()
        if not alpha:
            return None, 0.0
        pixel_values, input_ids, attention_mask = question
        if pixel_values is None or input_ids is None:
            raise ValueError(
                "the teacher reads the question itself: pass pixel_values and input_ids beside encoder_outputs, or "
                "alpha=0"
            )
        vision = self.teacher_vision_model(pixel_values, interpolate_pos_encoding=resize)
        states = self.teacher_text_model(
            input_ids, attention_mask=attention_mask, encoder_hidden_states=vision.last_hidden_state
        ).last_hidden_state
        read = self.teacher_text_decoder(**answers, encoder_hidden_states=states)
        return self.teacher_lm_head(read.last_hidden_state), alpha
