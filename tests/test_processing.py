"""What every processor does, whatever the architecture."""

import transformers
from tiny import tiny_processor

from hfvlm.processing import on_pil


class BlipImageProcessor:
    """Stands for the class that transformers loads where torchvision is installed."""

    def to_dict(self) -> dict:
        return {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "do_resize": True}


def test_pixels_come_from_pil_whatever_is_installed():
    image_processor = on_pil(BlipImageProcessor())
    assert type(image_processor) is transformers.BlipImageProcessorPil
    assert (image_processor.size["height"], list(image_processor.image_mean)) == (48, [0.1, 0.2, 0.3])


def test_other_image_processors_stay(tmp_path):
    processor = tiny_processor("hfvlm_blip")
    assert on_pil(processor.image_processor) is processor.image_processor
    assert on_pil(processor) is processor  # a class that has no form on PIL
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
