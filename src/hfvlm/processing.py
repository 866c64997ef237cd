"""The base of every hfvlm processor."""

import inspect
from pathlib import Path
from typing import Any

import transformers
from transformers import ProcessorMixin

from hfvlm.saving import SavesCode, edit_json


class VlmProcessor(SavesCode, ProcessorMixin):
    """`ProcessorMixin` whose folder loads anywhere: by its own name where hfvlm is imported, else by its own code."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "VlmProcessor":
        """As transformers' own, but the image processor is the PIL one, whose pixels are the original's to the bit,
        also where torchvision is installed; `backend="torchvision"` asks for that instead.

        Raises:
            ValueError: there are no words: transformers would make a tokenizer without any, and say nothing.
        """
        processor = super().from_pretrained(*args, **kwargs)
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            where = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            raise ValueError(f"{where} has no vocabulary: its tokenizer.json (or vocab.txt) is missing or empty")
        if "backend" not in kwargs and "use_fast" not in kwargs:
            processor.image_processor = on_pil(processor.image_processor)
        return processor

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """One sequence of ids to text, special tokens left out."""
        return self.tokenizer.decode(token_ids, **{"skip_special_tokens": True, **kwargs})

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """Several sequences of ids to texts, special tokens left out."""
        return [self.decode(ids, **kwargs) for ids in sequences]

    def to_dict(self) -> dict[str, Any]:
        # transformers looks `processor_class` up among its own classes first, where some of our names exist too; the
        # registry announces ours as "hfvlm.Name". Classes of others are found by the model's config.
        fields = super().to_dict()
        name = fields.pop("processor_class")
        package = __name__.rpartition(".")[0]  # in a saved folder, its own
        if type(self).__module__.startswith(f"{package}."):
            fields["processor_class"] = f"hfvlm.{name}"
        return fields

    def _save_code(self, folder: Path) -> None:
        # transformers has written the same name into the tokenizer's configuration, and left it in the tokenizer
        for name in self.get_attributes():
            if name == "tokenizer" or name.endswith("_tokenizer"):
                getattr(self, name)._set_processor_class(None)
        if (folder / "tokenizer_config.json").is_file():
            edit_json(folder / "tokenizer_config.json", {"processor_class": None})
        super()._save_code(folder)


def on_pil(image_processor: Any) -> Any:
    """The same image processor on PIL, if transformers has it; saved folders do not say which of the two they had."""
    name = type(image_processor).__name__
    pil = None if name.endswith("Pil") else getattr(transformers, f"{name}Pil", None)
    return image_processor if pil is None else pil.from_dict(image_processor.to_dict())


def reading_options(processor: Any) -> dict[str, str]:
    """What a processor whose model also writes texts is told, so that it takes them as texts to be read."""
    return {"task": "encode"} if "task" in inspect.signature(type(processor).__call__).parameters else {}
