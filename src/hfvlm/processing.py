"""The base of every hfvlm processor."""

from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from hfvlm.saving import SavesCode, edit_json


class VlmProcessor(SavesCode, ProcessorMixin):
    """`ProcessorMixin` whose folder loads anywhere: by its own name where hfvlm is imported, else by its own code."""

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
