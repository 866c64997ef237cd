"""MoCo: one step against its equations, what moves and what stands still, and the encoder elsewhere."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hfvlm import ClipConfig, ClipModel, MocoConfig, MocoForImageClassification, MocoForPreTraining, MocoModel
from hfvlm.conversion.convert_moco import to_release_keys
from hfvlm.models.moco import pretraining_moco


VIT = {
    "model_type": "hfvlm_vit_tower",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
V3 = {"objective": "symmetric", "projection_hidden_size": 24, "momentum": 0.9}


def pretraining(seed: int = 0, **fields) -> MocoForPreTraining:
    torch.manual_seed(seed)
    return MocoForPreTraining(MocoConfig.variant("tiny", **fields)).train()


def views(images: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, images, 3, 32, 32, generator=generator)
    return {"pixel_values": first, "pixel_values_key": second}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def embed(model: MocoForPreTraining, pixels: torch.Tensor, teacher: bool = False) -> torch.Tensor:
    tower, head = model._pairs()[0][teacher], model._pairs()[1][teacher]
    projected = head(tower(pixels).pooler_output)
    if model.predictor is not None and not teacher:
        projected = model.predictor(projected)
    return F.normalize(projected, dim=-1)


def moved(model: MocoForPreTraining, momentum: float) -> MocoForPreTraining:
    """A copy whose momentum encoder has made a step."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for student, teacher in model._pairs():
            for ours, theirs in zip(student.parameters(), teacher.parameters()):
                theirs.copy_(momentum * theirs + (1 - momentum) * ours)
    return model


def step_encoder(model: nn.Module, rate: float = 0.1) -> None:
    """Changes the encoder's weights as an optimiser would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(rate * torch.randn_like(parameter))


@pytest.mark.parametrize("queue_size", [12, 7, 3, 1])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_step_with_a_queue_of_any_size(queue_size, layers):
    model = pretraining(queue_size=queue_size, projection_layers=layers, temperature=0.3)
    step_encoder(model)
    batch, old, reference = views(), model.queue.features.clone(), moved(model, 0.9)
    queries = embed(reference, batch["pixel_values"])
    keys = embed(reference, batch["pixel_values_key"], teacher=True).detach()
    logits = torch.cat([(queries * keys).sum(1)[:, None], queries @ old.t()], dim=1) / 0.3
    loss = -logits.log_softmax(1)[:, 0].mean()
    loss.backward()
    outputs = model(**batch)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.loss_contrast, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.key_embeds, keys, rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters()):
        assert (ours.grad is None) == name.startswith("teacher_")
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    expected = old.clone()
    for i, key in enumerate(keys):
        expected[i % queue_size] = key
    torch.testing.assert_close(model.queue.features, expected, rtol=1e-4, atol=1e-5)
    assert model.queue.pointer.tolist() == [5 % queue_size]


@pytest.mark.parametrize("vision", [VIT, {}], ids=["vit", "resnet"])
def test_a_step_of_version_3(vision):
    model = pretraining(vision_config=vision, projection_layers=3 if vision else 2, temperature=0.5, **V3).double()
    step_encoder(model)
    batch, reference = {name: view.double() for name, view in views().items()}, moved(model, 0.9)
    first, second = batch.values()
    loss = 0
    queries = [embed(reference, view) for view in (first, second)]
    keys = [embed(reference, view, teacher=True).detach() for view in (second, first)]
    for query, key in zip(queries, keys):
        loss = loss - 2 * 0.5 * (query @ key.t() / 0.5).log_softmax(1).diagonal().mean()
    loss.backward()
    outputs = model(**batch)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss.double(), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.query_embeds, torch.cat(queries), rtol=1e-4, atol=1e-5)
    assert outputs.logits.shape == (10, 5) and model.queue is None
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters()):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    for (name, ours), theirs in zip(model.named_buffers(), reference.buffers()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)  # each view once through each


def test_version_3s_heads_are_the_releases():
    """Kinds and sizes of the layers, as its two builders have them."""

    def layers(head: nn.Sequential) -> list:
        return [
            (type(p).__name__, p.bias is not None, tuple(p.weight.shape))
            if isinstance(p, nn.Linear)
            else (type(p).__name__, getattr(p, "affine", None))
            for p in head
        ]

    norm, last, relu = ("BatchNorm1d", True), ("BatchNorm1d", False), ("ReLU", None)
    with torch.device("meta"):
        vit = MocoForPreTraining(MocoConfig.variant("v3_vit_small"))
        resnet = MocoForPreTraining(MocoConfig.variant("v3_resnet50"))
    linears = [("Linear", False, (4096, 384)), ("Linear", False, (4096, 4096)), ("Linear", False, (256, 4096))]
    assert layers(vit.projection) == [linears[0], norm, relu, linears[1], norm, relu, linears[2], last]
    assert layers(vit.predictor) == [("Linear", False, (4096, 256)), norm, relu, linears[2], last]
    assert layers(resnet.projection) == [("Linear", False, (4096, 2048)), norm, relu, linears[2], last]
    assert layers(resnet.predictor) == [("Linear", False, (4096, 256)), norm, relu, linears[2]]
    assert vit.config.vision_config.num_attention_heads == 12
    assert not vit.vision_model.patch_embed.proj.weight.requires_grad
    assert vit.config.vision_config.position_embedding == "sincos"


def test_published_sizes():
    """ResNet-50 without its classifier, and 2048 -> 128 or 2048 -> 2048 -> 128."""
    for name, head in {"v1": 2048 * 128 + 128, "v2": 2048 * 2048 + 2048 + 2048 * 128 + 128}.items():
        with torch.device("meta"):
            model = MocoForPreTraining(MocoConfig.variant(name))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 23_508_032 + head
        assert model.queue.features.shape == (65536, 128)


def test_evaluation_leaves_everything_alone():
    model = pretraining().eval()
    before, batch = state(model), views()
    outputs = model(**batch)
    assert outputs.loss.isfinite() and outputs.logits.shape == (5, 13)
    alone = model(pixel_values=batch["pixel_values"])
    assert alone.loss is None and torch.equal(alone.query_embeds, outputs.query_embeds)
    assert model(**batch, return_loss=False).loss is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_momentum_encoder_moves_once_for_each_change_of_the_weights():
    model = pretraining(momentum_steps=4)
    teacher = model.teacher_vision_model.stem[0].conv.weight
    for change in (True, False, False, True):
        if change:
            step_encoder(model)
        before = teacher.clone()
        model(**views(4)).loss.backward()
        assert torch.equal(before, teacher) != change
    assert model.teacher_step == 2 and model.queue.pointer.tolist() == [16 % 12]


def test_the_momentum_rises_by_a_cosine():
    model, seen = pretraining(momentum_steps=4), []
    for _ in range(6):
        seen.append(model.momentum())
        step_encoder(model)
        model(**views(2))
    assert seen == pytest.approx([1 - 0.1 * (1 + math.cos(math.pi * min(i, 4) / 4)) / 2 for i in range(6)])
    assert pretraining().momentum() == 0.9


def test_saves_momentum_encoder_and_queue(tmp_path):
    model = pretraining(momentum_steps=10)
    step_encoder(model)
    model(**views())
    model.save_pretrained(tmp_path)
    loaded = MocoForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert trainable and not any(name.startswith("teacher_") for name in trainable)


def test_pretraining_starts_from_an_encoder_with_its_copy(tmp_path):
    MocoModel(MocoConfig.variant("tiny")).save_pretrained(tmp_path)
    model = MocoForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(model.queue.features.norm(dim=1).round(decimals=5), torch.ones(12))
    for student, teacher in model._pairs():
        assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), teacher.state_dict().values()))
    encoder = MocoModel.from_pretrained(tmp_path)
    assert torch.equal(encoder.vision_model.stem[0].conv.weight, model.vision_model.stem[0].conv.weight)


def test_the_encoder_is_any_architectures_tower(tmp_path):
    model = pretraining().eval()
    model.save_pretrained(tmp_path)
    encoder, info = MocoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    pixels = views()["pixel_values"]
    features = encoder(pixels).pooler_output
    torch.testing.assert_close(features, model.get_image_features(pixels).pooler_output)
    text = ClipConfig.variant("tiny").text_config
    config = ClipConfig(vision_config=encoder.config.vision_config, text_config=text, projection_dim=8)
    clip = ClipModel(config, vision_model=encoder.vision_model).eval()
    clip.save_pretrained(tmp_path / "clip")
    loaded = ClipModel.from_pretrained(tmp_path / "clip")
    torch.testing.assert_close(loaded.vision_model(pixels).pooler_output, features)


def test_the_linear_probe_trains_the_classifier_alone(tmp_path):
    pretraining().save_pretrained(tmp_path)
    probe = MocoForImageClassification.from_pretrained(tmp_path, num_labels=3)
    probe.freeze("classifier")
    probe.train()
    before = state(probe.vision_model)
    outputs = probe(views()["pixel_values"], labels=torch.tensor([0, 1, 2, 0, 1]))
    outputs.loss.backward()
    assert outputs.logits.shape == (5, 3)
    assert [name for name, p in probe.named_parameters() if p.grad is not None] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert all(torch.equal(value, before[name]) for name, value in probe.vision_model.state_dict().items())


@pytest.mark.parametrize("fields", [{}, {"vision_config": VIT, **V3}], ids=["queue", "symmetric"])
@pytest.mark.parametrize("cast", [False, True], ids=["bf16 weights", "autocast"])
def test_logits_are_computed_in_full_precision(fields, cast):
    model, batch = pretraining(**fields).eval(), views()
    if not cast:
        model, batch = model.bfloat16(), {name: view.bfloat16() for name, view in batch.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        outputs = model(**batch)
    queries, keys = outputs.query_embeds.double(), outputs.key_embeds.double()
    if model.queue is None:
        sides = zip(queries.chunk(2), keys.chunk(2))
        logits, targets = torch.cat([q @ k.t() for q, k in sides]) / 0.2, torch.arange(5).repeat(2)
    else:
        negatives = model.queue.features.double()
        logits = torch.cat([(queries * keys).sum(1)[:, None], queries @ negatives.t()], dim=1) / 0.2
        targets = torch.zeros(5, dtype=torch.long)
    loss = F.cross_entropy(logits, targets) * (4 * 0.2 if model.queue is None else 1)
    assert outputs.logits.dtype == torch.float32
    torch.testing.assert_close(outputs.logits.double(), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.loss.double(), loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"vision_config": VIT, **V3}], ids=["queue", "symmetric"])
def test_exports_for_any_number_of_images(fields):
    model, shapes = pretraining(**fields).eval(), {name: {0: torch.export.Dim.AUTO} for name in views()}
    program = torch.export.export(model, (), views(), strict=False, dynamic_shapes=shapes)
    batch = views(3, seed=1)
    expected, actual = model(**batch), program.module()(**batch)
    torch.testing.assert_close([actual.loss, actual.logits], [expected.loss, expected.logits])


def test_freezing_leaves_the_momentum_encoder_at_work():
    model = pretraining(vision_config=VIT, **V3)
    model.freeze("all")
    model.train()
    assert not any(p.requires_grad for p in model.teacher_vision_model.parameters())
    assert not model.vision_model.patch_embed.proj.weight.requires_grad
    assert model.vision_model.blocks[0].mlp.fc1.weight.requires_grad
    assert all(module.training for module in model.teacher_projection.modules())
    free = pretraining(vision_config=VIT, freeze_patch_projection=False, **V3)
    assert free.vision_model.patch_embed.proj.weight.requires_grad


def test_bad_input():
    model, batch = pretraining(), views()
    with pytest.raises(ValueError, match="two views of each image: pass pixel_values_key"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="pixel_values has 5 images and pixel_values_key 4"):
        model(batch["pixel_values"], batch["pixel_values_key"][:4])
    with pytest.raises(TypeError, match="unknown argument 'pixel_value_key', did you mean 'pixel_values_key'"):
        model(batch["pixel_values"], pixel_value_key=batch["pixel_values_key"])
    with pytest.raises(ValueError, match="unknown MoCo variant 'v4'; choose from v1, v2"):
        MocoConfig.variant("v4")
    for fields, message in (
        ({"objective": "siamese"}, "objective must be one of queue, symmetric"),
        ({"queue_size": 0}, "queue_size must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\]"),
        ({"vision_config": {"model_type": "hfvlm_bert_tower"}}, "vision_config.model_type is 'hfvlm_bert_tower'"),
    ):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            MocoConfig(**fields)


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in views(1, seed=index).items()}


def trainer(folder, model: MocoForPreTraining, steps: int, **kwargs) -> Trainer:
    settings = {"learning_rate": 1e-2, "save_steps": 3, "logging_steps": 1, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, disable_tqdm=True, **{**settings, **kwargs}
    )
    return Trainer(model=model, args=arguments, train_dataset=Pairs(), eval_dataset=Pairs())


def test_the_stock_trainer_trains_and_resumes_it(tmp_path):
    whole = trainer(tmp_path / "whole", pretraining(), 6, gradient_accumulation_steps=2)
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.model.queue.pointer.tolist() == [6 * 2 * 4 % 12]
    assert whole.evaluate()["eval_loss"] != before
    resumed = trainer(tmp_path / "again", pretraining(seed=1), 6, gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


SHARES = (slice(0, 2), slice(2, 5))  # of two processes
ORDER = torch.tensor([3, 0, 4, 1, 2])


def run_rank(rank: int, folder: str) -> None:
    """One of two processes with batches of unlike size: version 3, then a queue, whose keys are shuffled."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    batch = {name: value[SHARES[rank]] for name, value in views().items()}
    pretraining_moco.shuffle_order = lambda rows, device: ORDER
    outputs = pretraining(**V3)(**batch)
    made = {"loss": outputs.loss, "queries": outputs.query_embeds, "keys": outputs.key_embeds}
    model = pretraining()
    outputs = model(**batch)
    made.update(queue=model.queue.features, queue_keys=outputs.key_embeds)
    save_file({name: value.detach().contiguous() for name, value in made.items()}, f"{folder}/{rank}.safetensors")
    distributed.barrier()  # one that leaves first makes gloo abort in the other now and then
    distributed.destroy_process_group()


def test_two_processes_contrast_with_each_others_images(tmp_path):
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(120) for process in processes] == [0, 0]
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    halves = [[rank["keys"].chunk(2)[half] for rank in ranks] for half in (0, 1)]
    for rank, share in zip(ranks, SHARES):
        loss = 0
        for query, keys in zip(rank["queries"].chunk(2), halves):
            targets = torch.arange(share.start, share.stop)
            loss = loss + 2 * 0.2 * F.cross_entropy(query @ torch.cat(keys).t() / 0.2, targets)
        torch.testing.assert_close(rank["loss"], loss, rtol=1e-4, atol=1e-5)
    teacher, images = moved(pretraining(), 0.9), views()["pixel_values_key"][ORDER]
    shuffled = torch.cat([embed(teacher, images[share], teacher=True) for share in SHARES])  # a batch norm each
    keys = shuffled[[ORDER.tolist().index(i) for i in range(5)]]
    torch.testing.assert_close(torch.cat([rank["queue_keys"] for rank in ranks]), keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ranks[0]["queue"][:5], keys, rtol=1e-4, atol=1e-5)
    assert torch.equal(ranks[0]["queue"], ranks[1]["queue"])


def test_release_keys_are_those_of_the_original():
    keys = to_release_keys(pretraining(), pretraining().state_dict())
    assert keys["queue"].shape == (16, 12) and "encoder_k.layer1.0.downsample.1.running_var" in keys


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])
