"""The base of every hfvlm processor."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from hfvlm.modeling import save_code


class VlmProcessor(ProcessorMixin):
    """`ProcessorMixin` whose folder loads anywhere: it is found by the model's config, or by its own code."""

    def to_dict(self) -> dict[str, Any]:
        # transformers looks `processor_class` up among its own classes first, where some of our names exist too
        return {key: value for key, value in super().to_dict().items() if key != "processor_class"}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        saved = super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "tokenizer_config.json"  # names the class too: see `to_dict`
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields.pop("processor_class", None)
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        save_code(self, save_directory)
        return saved
