"""What CLIP must reproduce of OpenAI's code and of open_clip's."""

import json
from pathlib import Path

import pytest
import torch
from golden import Golden

from hfvlm.conversion.clip_processor import MERGES_FILE, processor_for
from hfvlm.conversion.convert_clip import convert
from hfvlm.losses.contrastive import contrastive_loss, sigmoid_loss
from hfvlm.models.clip.configuration_clip import ClipConfig
from hfvlm.models.clip.modeling_clip import ClipModel
from hfvlm.models.clip.processing_clip import ClipProcessor


#: the merges that the published vocabulary has, of the original's file
MERGES = Path(__file__).parent / "goldens" / "openai_clip_tokenizer" / MERGES_FILE


def tokenizer(table: Path) -> None:
    """`SimpleTokenizer` and `clip.tokenize` of each sentence: ids, decoded text, and what is too long."""
    recorded = json.loads(table.read_text())
    length = {"vocab_size": recorded["vocab_size"], "max_position_embeddings": recorded["context_length"]}
    processor = processor_for(ClipConfig(text_config=length), None, MERGES)
    words = processor.tokenizer
    assert (words.bos_token_id, words.eos_token_id, processor.padding_id) == tuple(
        recorded[name] for name in ("sot", "eot", "pad")
    )
    for case in recorded["cases"]:
        text = case["text"]
        batch = processor(text=text, padding="max_length")
        assert batch["input_ids"].tolist() == [case["tokenize_truncate"]], text
        assert words.decode(case["encode"]) == case["decode"].strip(), text
        if case["tokenize_no_truncate_error"]:
            with pytest.raises(ValueError, match=f"{recorded['context_length']} are allowed"):
                processor(text=text, truncation=False)
        else:
            ids = [words.bos_token_id, *case["encode"], words.eos_token_id]
            assert processor(text=text, truncation=False)["input_ids"].tolist() == [ids], text


def openai(golden: Golden, monkeypatch, tmp_path) -> None:
    """`build_model` of a state dict, and of an archive where the case has one."""
    plain, archive = golden.folder / "checkpoint.pth", golden.folder / "checkpoint_jit.pt"
    vocab = golden.folder / golden.config["bpe_file"]
    model = convert(plain, vocab=vocab, output=tmp_path / "model")
    if archive.is_file():
        other = convert(archive).float().state_dict()
        assert all(torch.equal(other[name], value) for name, value in model.state_dict().items())
    golden_ids = golden.inputs["text"]
    processor = ClipProcessor.from_pretrained(tmp_path / "model")
    ids = processor(text=golden.config["sentences"], padding="max_length")["input_ids"]
    assert torch.equal(ids, golden_ids.to(ids.dtype))
    with torch.no_grad():
        vision, text = towers(golden, model)
        golden.check("image_features", vision.pooler_output)
        golden.check("text_features", text.pooler_output)
        logits(golden, model)


def open_clip(golden: Golden, monkeypatch, tmp_path) -> None:
    """`open_clip.CLIP` and `CustomTextCLIP`: what their functions return, and their losses with gradients."""
    model = convert(golden.checkpoint, config=golden.config["model_cfg"])
    with torch.no_grad():
        vision, text = towers(golden, model)
        for name in ("image_features_raw", "visual_pooled_proj"):
            if name in golden.outputs:
                golden.check(name, vision.pooler_output)
        golden.check("text_features_raw", text.pooler_output)
        if "visual_tokens" in golden.outputs:
            tower, tokens = model.vision_model, vision.last_hidden_state
            if tower.config.final_norm == "pooled" and not final_norm_after_pooling(golden):
                tokens = tower.norm(tokens)  # the class token's norm, which the original gives every token
            golden.check("visual_tokens", tower.patches(tokens))
        outputs = logits(golden, model)
        golden.check("image_features", outputs.image_embeds)
        golden.check("text_features", outputs.text_embeds)
        scale, bias = model.scale_and_bias()
        golden.check("logit_scale_exp", scale)
        if "logit_bias" in golden.outputs:
            golden.check("logit_bias", bias)
    losses(golden, outputs, scale, torch.tensor(-10.0) if bias is None else bias)


def final_norm_after_pooling(golden: Golden) -> bool:
    return bool(golden.config["model_cfg"]["vision_cfg"].get("final_ln_after_pool"))


def towers(golden: Golden, model: ClipModel) -> tuple:
    """What each tower returns, its blocks compared on the way."""
    image, ids = golden.inputs["image"], golden.inputs["text"]
    vision = model.get_image_features(image, output_hidden_states=True)
    text = model.get_text_features(ids, output_hidden_states=True)
    resnet = hasattr(model.vision_model, "stages")
    for name in golden.outputs:
        kind, _, number = name.rpartition("block")
        if kind == "text_":
            golden.check(name, text.hidden_states[int(number) + 1])
        elif kind == "visual_":
            golden.check(name, vision.hidden_states[int(number) + 1])
        elif name == "visual_ln_pre":
            golden.check(name, vision.hidden_states[0])
        elif resnet and name.startswith("visual_layer"):
            depth = sum(model.config.vision_config.depths[: int(name.removeprefix("visual_layer"))])
            golden.check(name, vision.hidden_states[depth])
    return vision, text


def logits(golden: Golden, model: ClipModel):
    """The similarities, of which the numbers of images and texts differ."""
    outputs = model(golden.inputs["text"], golden.inputs["image"])
    golden.check("logits_per_image", outputs.logits_per_image)
    golden.check("logits_per_text", outputs.logits_per_text)
    return outputs


def losses(golden: Golden, outputs, scale: torch.Tensor, bias: torch.Tensor) -> None:
    """Both losses of the pairs, and their gradients by features, scale and bias."""
    pairs = min(len(outputs.image_embeds), len(outputs.text_embeds))
    inputs = {
        "image_features": outputs.image_embeds[:pairs],
        "text_features": outputs.text_embeds[:pairs],
        "logit_scale_exp": scale,
        "logit_bias": bias,
    }
    inputs = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    golden.check("siglip_loss.logit_bias_used", bias)
    for name, loss, names in (
        ("clip_loss", contrastive_loss, list(inputs)[:3]),
        ("siglip_loss", sigmoid_loss, list(inputs)),
    ):
        value = loss(*(inputs[one] for one in names))
        golden.check(name, value)
        for one, gradient in zip(names, torch.autograd.grad(value, [inputs[one] for one in names])):
            golden.check(f"{name}.d_{one}", gradient)
