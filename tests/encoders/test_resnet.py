"""ResNet towers: published sizes, a reference in a few lines, foreign keys, and what training mode may touch."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F

from hfvlm.conversion.rules import KeyMismatch, apply, invert
from hfvlm.conversion.towers import resnet_geometry, resnet_rules
from hfvlm.encoders.configuration import EfficientNetTowerConfig, ResNetTowerConfig
from hfvlm.encoders.efficientnet import EfficientNetTower
from hfvlm.encoders.resnet import ResNetTower


KINDS = {
    "bottleneck": {},
    "basic": {"bottleneck": False},
    "modified": {"modified": True, "pooling": "attention", "num_attention_heads": 4, "output_dim": 24},
}


def tower(kind: str = "bottleneck", **kwargs) -> ResNetTower:
    """A narrow network of every kind of block, with statistics as if it had been trained."""
    torch.manual_seed(0)
    fields = {"depths": (2, 1, 2, 1), "width": 4, "image_size": 64, **KINDS[kind]}
    model = ResNetTower(ResNetTowerConfig(**{**fields, **kwargs})).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def foreign(model: ResNetTower) -> dict[str, torch.Tensor]:
    """Its weights under the originals' keys."""
    return apply(invert(resnet_rules("", "")), model.state_dict()).tensors


def reference(weights: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same network out of functions and the originals' keys: the last map and the pooled vector."""

    def norm(x, name):
        parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    def conv(x, conv_name, norm_name, stride=1):
        weight = weights[f"{conv_name}.weight"]
        return norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), norm_name)

    modified, bottleneck = "conv3.weight" in weights, "layer1.0.conv3.weight" in weights
    x = F.relu(conv(pixels, "conv1", "bn1", 2))
    if modified:
        x = F.relu(conv(x, "conv2", "bn2"))
        x = F.avg_pool2d(F.relu(conv(x, "conv3", "bn3")), 2)
    else:
        x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for i in range(sum(f"layer{stage}.{i}.conv1.weight" in weights for i in range(100))):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            shortcut, y = x, x
            strides = (1, stride) if bottleneck else (stride, 1)
            for n, step in enumerate((1, 1) if modified else strides, 1):
                y = conv(y, f"{name}.conv{n}", f"{name}.bn{n}", step)
                y = F.relu(y) if bottleneck or n == 1 else y
            if bottleneck:
                y = F.avg_pool2d(y, stride) if modified else y
                y = conv(y, f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                shortcut = F.avg_pool2d(x, stride) if modified else x
                shortcut = conv(shortcut, f"{name}.downsample.0", f"{name}.downsample.1", 1 if modified else stride)
            x = F.relu(y + shortcut)
    if not modified:
        return x, x.mean((2, 3))
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + weights["attnpool.positional_embedding"][:, None]
    biases = torch.cat([weights[f"attnpool.{n}_proj.bias"] for n in "qkv"])
    pooled, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, tokens.shape[2], heads, None, biases, None, None, False, 0.0,
        weights["attnpool.c_proj.weight"], weights["attnpool.c_proj.bias"], training=False, need_weights=False,
        use_separate_proj_weight=True, **{f"{n}_proj_weight": weights[f"attnpool.{n}_proj.weight"] for n in "qkv"},
    )  # fmt: skip
    return x, pooled[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind, attention):
    model = tower(kind)
    model.set_attn_implementation(attention)
    pixels = torch.randn(2, 3, 64, 64)
    features, pooled = reference(foreign(model), pixels, model.config.num_attention_heads)
    outputs = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(outputs.hidden_states[-1], features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.last_hidden_state, features.flatten(2).mT, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.pooler_output, pooled, rtol=1e-4, atol=1e-5)


# depths, fields, millions of parameters: torchvision's without `fc`, CLIP's with attention pooling
PUBLISHED = {
    "resnet18": ((2, 2, 2, 2), {"bottleneck": False}, 11.177),
    "resnet50": ((3, 4, 6, 3), {}, 23.508),
    "resnet101": ((3, 4, 23, 3), {}, 42.500),
    "RN50": ((3, 4, 6, 3), {"modified": True, "pooling": "attention"}, 38.317),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    depths, fields, millions = PUBLISHED[name]
    with torch.device("meta"):
        model = ResNetTower(ResNetTowerConfig(depths=depths, **fields))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_geometry_is_read_off_the_shapes(kind):
    model = tower(kind, width=8)
    fields = resnet_geometry(foreign(model), "")
    if kind == "modified":
        assert fields["num_attention_heads"] == 8 * 32 // 64 and fields["image_size"] == 64
        assert fields["output_dim"] == 24
    assert fields["depths"] == [2, 1, 2, 1] and fields["width"] == 8 and fields["num_channels"] == 3
    built = ResNetTower(ResNetTowerConfig(**{"image_size": 64, **fields}))
    converted = apply(resnet_rules("", ""), foreign(model), {k: v.shape for k, v in built.state_dict().items()})
    built.load_state_dict(converted.tensors)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in built.state_dict().items())


def test_a_checkpoint_that_lacks_a_block_is_refused():
    model = tower()
    weights = foreign(model)
    weights.pop("layer3.1.conv2.weight")
    with pytest.raises(KeyMismatch, match="layer3.1.conv2.weight"):
        apply(resnet_rules("", ""), weights, {k: v.shape for k, v in model.state_dict().items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "tokens"), [((64, 64), 4), ((96, 64), 6), ((128, 128), 16)])
def test_a_token_every_32_pixels(kind, size, tokens):
    model = tower(kind)
    pixels = torch.randn(2, 3, *size)
    outputs = model(pixels, interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape == (2, tokens, model.config.hidden_size)
    assert outputs.pooler_output.shape == (2, 24 if kind == "modified" else model.config.hidden_size)
    if size == (64, 64):
        torch.testing.assert_close(outputs.pooler_output, model(pixels).pooler_output)
    else:
        with pytest.raises(ValueError, match="pass interpolate_pos_encoding=True"):
            model(pixels)


def test_hidden_states_are_the_maps_of_the_blocks():
    model = tower("modified")
    maps = model(torch.randn(2, 3, 64, 64), output_hidden_states=True).hidden_states
    shapes = [(4, 16), (16, 16), (16, 16), (32, 8), (64, 4), (64, 4), (128, 2)]
    assert [tuple(m.shape) for m in maps] == [(2, channels, side, side) for channels, side in shapes]


def test_attention_pooling_shows_its_weights():
    model = tower("modified")
    model.set_attn_implementation("eager")
    (weights,) = model(torch.randn(2, 3, 64, 64), output_attentions=True).attentions
    assert weights.shape == (2, 4, 1, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_who_listens_to_any_part_hears_it_unchanged(kind):
    """Backwards, and forwards what the norms gave before the ReLU."""
    model, backwards, forwards = tower(kind), set(), {}
    for name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: backwards.add(name))
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *args, name=name: forwards.update({name: args[-1]}))
    pixels = torch.randn(2, 3, 64, 64, requires_grad=True)
    model(pixels).pooler_output.sum().backward()
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms <= backwards
    with torch.no_grad():
        model(pixels)
    assert norms == set(forwards) and all(output.min() < 0 for output in forwards.values())


def test_a_modified_block_starts_as_its_shortcut():
    torch.manual_seed(0)
    model = ResNetTower(ResNetTowerConfig(depths=(2, 1, 1, 1), width=4, modified=True, image_size=64)).eval()
    features = torch.rand(1, 16, 4, 4)
    assert torch.equal(model.stages[0][1](features), features)


def efficientnet() -> EfficientNetTower:
    torch.manual_seed(0)
    fields = {"width_coefficient": 0.25, "head_channels": 16, "hidden_size": 16, "image_size": 64}
    return EfficientNetTower(EfficientNetTowerConfig(drop_connect_rate=0.0, **fields))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("build", [tower, efficientnet])
def test_checkpointing_counts_each_batch_once(build, reentrant):
    plain, checkpointed = build().train(), build().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    pixels = torch.randn(4, 3, 64, 64)
    for model in (plain, checkpointed):
        model(pixels.clone().requires_grad_()).pooler_output.square().sum().backward()
    for (name, one), other in zip(plain.named_buffers(), checkpointed.buffers()):
        assert torch.equal(one, other), name
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert any(name.endswith("num_batches_tracked") and count == 1 for name, count in plain.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_saves_loads_and_exports(kind, tmp_path):
    model = tower(kind)
    pixels = torch.randn(3, 3, 64, 64)
    model.save_pretrained(tmp_path)
    loaded = ResNetTower.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    # a convolution's last bit depends on how its weights lie in memory
    torch.testing.assert_close(loaded(pixels).pooler_output, model(pixels).pooler_output)
    shapes = {"pixel_values": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(model, (), {"pixel_values": pixels}, strict=False, dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(pixel_values=pixels[:2])[0], model(pixels[:2])[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (3, 4, 6)}, "depths must name the blocks of four stages"),
        ({"pooling": "max"}, "pooling must be one of mean, attention"),
        ({"modified": True, "bottleneck": False}, "modified=True needs bottleneck=True"),
        ({"pooling": "attention", "image_size": 100}, "image_size .100. must be a multiple of 32"),
        ({"pooling": "attention", "num_attention_heads": 7}, "must be a multiple of num_attention_heads .7."),
    ],
)
def test_impossible_geometry_names_the_field(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        ResNetTowerConfig(**fields)
