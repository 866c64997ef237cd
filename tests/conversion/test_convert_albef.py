"""ALBEF's releases: every key is used or dropped with a reason, sizes are read off, bad input is named."""

import pytest
import torch
from tiny import WORDS, tiny_model

import hfvlm
from hfvlm.conversion.convert_albef import convert, main, to_release_keys
from hfvlm.conversion.rules import KeyMismatch


HEADS = {
    "vision_config": {"num_attention_heads": 4},
    "text_config": {"num_attention_heads": 4},
    "mask_token_id": 4,
}
#: and what a vocabulary would tell
STARTED = {**HEADS, "text_config": {"num_attention_heads": 4, "bos_token_id": 2}}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def release(head: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    auto = {"pretraining": "AutoModelForPreTraining", "retrieval": "AutoModelForImageTextRetrieval"}[head]
    model = tiny_model("albef", auto)
    return model, to_release_keys(model.state_dict(), head)


def write_vocab(path) -> None:
    words = [*SPECIAL, *WORDS]
    words += [f"word{i}" for i in range(64 - len(words))]
    path.write_text("\n".join(words[:64]))


@pytest.mark.parametrize("head", ["pretraining", "retrieval"])
def test_a_release_comes_back_whole(head, tmp_path):
    model, tensors = release(head)
    torch.save({"model": tensors}, tmp_path / "albef.pth")
    write_vocab(tmp_path / "vocab.txt")
    converted = convert(tmp_path / "albef.pth", config=HEADS, output=tmp_path / "out", verify=True)
    assert type(converted) is type(model)
    own = dict(model.state_dict())
    if head == "pretraining":  # the release does not store whose the queued rows are
        own["image_queue.ids"] = torch.full_like(own["image_queue.ids"], -100)
    assert all(torch.equal(value, own[name]) for name, value in converted.state_dict().items())
    config = converted.config
    assert (config.text_config.fusion_layer, config.text_config.num_hidden_layers) == (2, 4)
    assert (config.projection_dim, config.queue_size, config.mask_token_id) == (32, 16, 4)
    processor = hfvlm.AlbefProcessor.from_pretrained(tmp_path / "out")
    batch = processor(text=["a dog", "the cat sits"])
    assert batch["input_ids"][0, 0] == 2 and 3 not in batch["input_ids"]
    loaded = hfvlm.AlbefModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.text_proj.weight, model.text_proj.weight)


def test_another_image_size_resizes_both_position_tables():
    _, tensors = release("pretraining")
    converted = convert(tensors, config=HEADS, image_size=48)
    assert converted.vision_model.position_embedding.shape == (1, 37, 40)
    assert converted.teacher_vision_model.position_embedding.shape == (1, 37, 40)


def test_what_does_not_fit_is_named(tmp_path, capsys):
    _, tensors = release("retrieval")
    with pytest.raises(ValueError, match="vision tower's heads cannot be told"):
        convert(tensors, config={"mask_token_id": 4})
    with pytest.raises(ValueError, match="not an ALBEF checkpoint.*found layer.weight"):
        convert({"layer.weight": torch.zeros(1)})
    with pytest.raises(KeyMismatch, match="visual_encoder.head.weight"):
        convert({**tensors, "visual_encoder.head.weight": torch.zeros(1)}, config=HEADS)
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL))
    with pytest.raises(ValueError, match="the vocabulary has 5 words, the checkpoint 64"):
        convert(tensors, config=HEADS, vocab=tmp_path / "vocab.txt")
    assert main(["--checkpoint", str(tmp_path / "none.pth"), "--output", str(tmp_path / "out")]) == 1
    assert "convert_albef: error:" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("teacher", [True, False])
def test_a_release_that_answers_comes_back_whole(teacher, tmp_path):
    """Whatever its decoder's layers; with its teacher, or without."""
    fields = {"decoder_layers": 3, **({} if teacher else {"momentum": None})}
    model = tiny_model("albef", "AutoModelForVisualQuestionAnswering", **fields)
    tensors = to_release_keys(model.state_dict(), "answering")
    assert any(name.startswith("text_decoder_m.") for name in tensors) is teacher
    converted = convert(tensors, config=STARTED, output=tmp_path / "out", verify=True)
    assert type(converted) is type(model) and converted.config.decoder_layers == 3
    state = model.state_dict()
    assert state.keys() == converted.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in converted.state_dict().items())


def test_a_pretraining_folder_starts_a_head_that_answers(tmp_path):
    """As the release's checkpoint of the same weights does, its teacher too."""
    wide = tiny_model("albef", "AutoModelForPreTraining", vision_config={"hidden_size": 48})
    wide.save_pretrained(tmp_path)
    theirs = convert(to_release_keys(wide.state_dict(), "pretraining"), config=STARTED, head="answering").state_dict()
    ours = convert(tmp_path, head="answering", verify=True).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_pretraining_checkpoint_starts_a_head_that_answers():
    """The layers that fuse are the decoder's first weights, and masked words' scores its own; the teacher's too."""
    wide = tiny_model("albef", "AutoModelForPreTraining", vision_config={"hidden_size": 48})
    tensors = to_release_keys(wide.state_dict(), "pretraining")
    converted = convert(tensors, config=STARTED, head="answering", verify=True)
    pretrained, state = wide.state_dict(), converted.state_dict()
    for prefix in ("", "teacher_"):
        for name in ("text_model.layers.3.cross_attention.q.weight", "vision_model.norm.weight", "lm_head.norm.bias"):
            assert torch.equal(state[prefix + name], pretrained[prefix + name])
        for ours, theirs in (
            ("layers.0.causal_attention.qkv.weight", "layers.2.attention.qkv.weight"),
            ("layers.1.mlp.fc1.bias", "layers.3.mlp.fc1.bias"),
            ("embeddings.word.weight", "embeddings.word.weight"),
        ):
            assert torch.equal(state[f"{prefix}text_decoder.{ours}"], pretrained[f"{prefix}text_model.{theirs}"])
    _, tensors = release("pretraining")
    with pytest.raises(KeyMismatch, match="crossattention"):  # its images are 40 wide, the decoder reads 48
        convert(tensors, config=HEADS, head="answering")
    _, retrieval = release("retrieval")
    with pytest.raises(ValueError, match="made of a pretraining checkpoint, not 'answering' of one for retrieval"):
        convert(retrieval, config=HEADS, head="answering")


def test_a_release_that_assigns_texts_comes_back_whole():
    """Its fusion layers are there twice, and the keys' and values' projection of a pair is stored twice."""
    model = tiny_model("albef", "AutoModelForTextAssignment")
    layer = "text_encoder.encoder.layer."
    like = {f"{layer}{i}.crossattention.self.key.weight": torch.zeros(1, 1) for i in range(2, 6)}  # numbers the layers
    like |= {f"{layer}{i}.attention.self.key.weight": torch.zeros(1, 1) for i in range(2)}
    tensors = to_release_keys(model.state_dict(), "assignment", like)
    for name in [
        name for name in tensors if ".crossattention.self.key" in name or ".crossattention.self.value" in name
    ]:
        first = int(name.removeprefix(layer).partition(".")[0])
        tensors[name.replace(f"{layer}{first}.", f"{layer}{first + 1}.")] = tensors[name]
    unused = {"temp": torch.tensor(0.07), "text_proj.weight": torch.zeros(32, 48), "text_proj.bias": torch.zeros(32)}
    converted = convert({**tensors, **unused}, config=STARTED, verify=True)
    assert type(converted) is type(model) and converted.config.text_config.num_hidden_layers == 4
    state = converted.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_classes_of_a_release_have_names():
    model = tiny_model("albef", "AutoModelForVisualEntailment", num_labels=3, momentum=None)
    release = to_release_keys(model.state_dict(), "entailment")
    names = ("contradiction", "neutral", "entailment")
    assert convert(release, config=STARTED).config.id2label == dict(enumerate(names))
    named = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    assert convert(release, config={**STARTED, **named}).config.id2label == named["id2label"]
    two = tiny_model("albef", "AutoModelForVisualEntailment", num_labels=2, momentum=None)
    release = to_release_keys(two.state_dict(), "entailment")
    assert convert(release, config=STARTED).config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
