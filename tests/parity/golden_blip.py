"""What BLIP's heads must reproduce of the original code."""

import re

import golden_blip_pairs
import torch
from golden import Golden
from golden_fusion import tower_fields

from hfvlm.conversion.convert_blip import convert, convert_vision, to_release_keys
from hfvlm.models.blip.processing_blip import BlipProcessor


TOP_K = 50  # transformers 4.15's default
REPETITION_PENALTY = 1.5  # of the cases named *_rp


def caption(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_Decoder`: loss, logits, gradients, every kind of generation, decoded texts."""
    model = convert(golden.checkpoint, config=tower_fields(golden.config), output=tmp_path / "model")
    processor = BlipProcessor.from_pretrained(tmp_path / "model")
    assert model.config.text_config.eos_token_id == golden.config["special_token_ids"]["sep"]
    image, prompt, texts = golden.inputs["image"], golden.config["prompt"], golden.config["texts"]
    processor.prompt = prompt
    golden.check("image_embeds", model.get_image_features(image).last_hidden_state)
    if prompt:
        prompt_ids = processor(text=[prompt] * len(image))["input_ids"]
    else:
        prompt_ids = torch.full((len(image), 1), model.config.text_config.bos_token_id)
    golden.check("prompt_ids", prompt_ids)

    batch = processor(
        suffix=[text[len(prompt) :] for text in texts["caption"]], max_length=golden.config["tokenizer"]["max_length"]
    )
    golden.check("train.decoder_input_ids", batch["input_ids"])
    golden.check("train.decoder_targets", batch["labels"])
    slots = torch.arange(batch["input_ids"].shape[1])[None]  # the original numbers padding too
    outputs = model(image, **batch, position_ids=slots)
    outputs.loss.backward()
    golden.check("train.loss_lm", outputs.loss)
    golden.check("train.logits", outputs.logits)
    gradients = to_release_keys({name: p.grad for name, p in model.named_parameters(remove_duplicate=False)})
    for name in [name for name in golden.outputs if name.startswith("train.grad.")]:
        golden.check(name, gradients[name.removeprefix("train.grad.")])

    made = {}
    for name in {name.split(".")[0] for name in golden.outputs if name.endswith(".sequences")}:
        made[name] = generate(golden, monkeypatch, model, name, prompt_ids)
    for name, captions in texts["captions_out"].items():
        assert [text[len(prompt) :] for text in processor.batch_decode(made[name])] == captions, name


def generate(golden: Golden, monkeypatch, model, name: str, prompt_ids: torch.Tensor) -> torch.Tensor:
    """One kind of generation, compared; its sequences."""
    kwargs = {key: golden.config["generate"][key] for key in ("max_length", "min_length")}
    steps = []
    if name == "sample":
        recorded = golden.outputs["sample.sequences"][:, prompt_ids.shape[1] :]

        def draw(probabilities, num_samples):
            steps.append(probabilities)
            return recorded[:, len(steps) - 1 : len(steps)]

        monkeypatch.setattr(torch, "multinomial", draw)
        kwargs |= {"do_sample": True, "top_k": TOP_K, **golden.config["generate"]["sample"]}
    elif beams := re.match(r"beam(\d+)", name):
        kwargs["num_beams"] = int(beams[1])
        if name.endswith("_rp"):
            kwargs["repetition_penalty"] = REPETITION_PENALTY
        if shortest := re.search(r"_min(\d+)", name):
            kwargs["min_length"] = int(shortest[1])
    else:
        assert name == "greedy"
    out = model.generate(
        golden.inputs["image"], input_ids=prompt_ids, return_dict_in_generate=True, output_scores=True, **kwargs
    )
    monkeypatch.undo()
    sequences, text = out.sequences, model.config.text_config
    width = golden.outputs[f"{name}.sequences"].shape[1]
    sequences = torch.nn.functional.pad(sequences, (0, width - sequences.shape[1]), value=text.pad_token_id)
    golden.check(f"{name}.sequences", sequences)
    if f"{name}.sequences_scores" in golden.outputs:
        golden.check(f"{name}.sequences_scores", out.sequences_scores)
    if steps:
        ours, theirs = torch.stack(steps, 1), golden.outputs["sample.probs"].clone()
        drawn = sequences[:, prompt_ids.shape[1] :][:, : ours.shape[1]] == text.eos_token_id
        over = drawn.cumsum(1) - drawn.long() > 0  # after the end token nothing has a meaning
        kept = torch.where(over[..., None], theirs[:, : ours.shape[1]], ours)
        golden.check("sample.probs", torch.cat([kept, theirs[:, ours.shape[1] :]], 1))
    return sequences


def pos_interp(golden: Golden, monkeypatch, tmp_path) -> None:
    """`BLIP_ITM` loaded at another image size: the image tower, and what its heads give once they are here."""
    config = tower_fields(golden.config)
    tower = convert_vision(golden.checkpoint, config=config, image_size=golden.config["image_size_model"])
    golden.check("visual_encoder.pos_embed", tower.position_embedding)
    golden.check("image_embeds", tower(golden.inputs["image"]).last_hidden_state)
    model = convert(golden.checkpoint, config=config, image_size=golden.config["image_size_model"])
    golden_blip_pairs.judged(golden, model, golden.inputs["image"], golden_blip_pairs.texts(golden))
