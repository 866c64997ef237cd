"""EfficientNet towers: the published geometry, TensorFlow's padding, and what training mode may touch."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.encoders.efficientnet import EfficientNetTower, RightPadConv, SamePadConv, convolution
from hfvlm.encoders.efficientnet_stages import scale_channels
from hfvlm.models.blip.configuration_blip import BlipConfig
from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration


def tower(**kwargs) -> EfficientNetTower:
    """The narrowest network that still has all seven stages."""
    torch.manual_seed(0)
    fields = {"width_coefficient": 0.25, "image_size": 64, "head_channels": 64, "hidden_size": 16}
    return EfficientNetTower(EfficientNetTowerConfig(**{**fields, **kwargs})).eval()


# width coefficient, depth coefficient, head channels, blocks, millions of parameters without the classifier
PUBLISHED = {
    "B0": (1.0, 1.0, 1280, 16, 4.01),
    "B1": (1.0, 1.1, 1280, 23, 6.51),
    "B2": (1.1, 1.2, 1408, 23, 7.70),
    "B3": (1.2, 1.4, 1536, 26, 10.70),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    width, depth, head, blocks, millions = PUBLISHED[name]
    config = EfficientNetTowerConfig(width_coefficient=width, depth_coefficient=depth, hidden_size=head)
    with torch.device("meta"):
        model = EfficientNetTower(config)
    assert model.head.conv.out_channels == head
    assert model.proj is None
    assert len(model.blocks) == blocks
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_lite0_scales_neither_stem_nor_head_and_has_no_squeeze_excite():
    with torch.device("meta"):
        model = EfficientNetTower(EfficientNetTowerConfig(lite=True))
    assert model.stem.conv.out_channels == 32 and model.head.conv.out_channels == 1280
    assert all(block.squeeze_excite is None for block in model.blocks)
    assert not any(isinstance(module, nn.SiLU) for module in model.modules())
    # 4,652,008 with its classifier of 1280 x 1000 + 1000
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(32, 1.0, 32), (32, 1.1, 32), (16, 1.2, 24), (24, 1.1, 24), (40, 1.2, 48), (320, 1.4, 448), (1280, 1.2, 1536)],
)
def test_channels_are_rounded_to_eights(channels, width, expected):
    assert scale_channels(channels, width) == expected


def test_channels_never_lose_more_than_a_tenth():
    for channels in range(8, 400, 8):
        for width in (0.25, 0.5, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0):
            scaled = scale_channels(channels, width)
            assert scaled % 8 == 0 and scaled >= max(8, 0.9 * channels * width)


@pytest.mark.parametrize("size", [4, 5, 8, 11])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_tensorflows_same(size, kernel, stride):
    """The reference: output `i` is centred so that the padding before is the floor of half of what is missing."""
    conv = convolution(1, 1, kernel, stride)
    image = torch.randn(1, 1, size, size + 1)
    outputs = conv(image)
    shape = [math.ceil(n / stride) for n in image.shape[2:]]
    assert list(outputs.shape[2:]) == shape
    before = [max((o - 1) * stride + kernel - n, 0) // 2 for o, n in zip(shape, image.shape[2:])]
    expected = torch.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            for y in range(kernel):
                for x in range(kernel):
                    at = (row * stride + y - before[0], column * stride + x - before[1])
                    if 0 <= at[0] < image.shape[2] and 0 <= at[1] < image.shape[3]:
                        expected[row, column] += conv.weight[0, 0, y, x] * image[0, 0, at[0], at[1]]
    torch.testing.assert_close(outputs[0, 0], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(conv, SamePadConv) == (stride == 2)


@pytest.mark.parametrize("kernel", [3, 5])
def test_fixed_padding_is_same_padding_for_even_sizes_only(kernel):
    same = convolution(1, 1, kernel, 2)
    fixed = convolution(1, 1, kernel, 2, padding="right")
    symmetric = convolution(1, 1, kernel, 2, padding="symmetric")
    fixed.load_state_dict(same.state_dict())
    symmetric.load_state_dict(same.state_dict())
    even, odd = torch.randn(1, 1, 8, 10), torch.randn(1, 1, 9, 11)
    torch.testing.assert_close(fixed(even), same(even))
    assert fixed(odd).shape[2:] == (4, 5) and same(odd).shape[2:] == (5, 6)
    torch.testing.assert_close(symmetric(odd), same(odd))
    assert not torch.allclose(symmetric(even), same(even))


def test_blocks_named_symmetric_are_padded_alike_on_both_sides():
    model = tower(padding="fixed", symmetric_blocks=[1])
    assert [type(model.blocks[i].depthwise.conv) is nn.Conv2d for i in (1, 3)] == [True, False]
    assert type(model.stem.conv) is RightPadConv
    for size, side in ((64, 2), (72, 2), (63, 1)):  # 63 -> 31 -> 15 -> 7 -> 3 -> 1
        plain = tower(padding="fixed")(torch.randn(1, 3, size, size), interpolate_pos_encoding=True)
        assert plain.last_hidden_state.shape[1] == side * side


def test_without_a_head_the_last_blocks_channels_are_the_tokens():
    model = tower(head_channels=None, hidden_size=80)
    assert model.head is None and model.proj is None and model.config.map_channels == 80
    features = []
    model.blocks[-1].register_forward_hook(lambda _, inputs, output: features.append(output))
    tokens = model(torch.randn(1, 3, 64, 64)).last_hidden_state
    assert torch.equal(tokens, features[0].flatten(2).transpose(1, 2))
    assert tower(head_channels=None).proj.in_features == 80


def test_stages_activation_squeeze_and_pooling_are_the_configs():
    stages = [[1, 3, 1, 1, 16], [2, 5, 2, 4, 30]]
    model = tower(
        stages=stages,
        width_coefficient=1.0,
        channel_divisor=4,
        squeeze_ratio=0.5,
        hidden_act="gelu",
        head_channels=None,
        hidden_size=32,
        pooling="max",
    )
    assert [block.project.conv.out_channels for block in model.blocks] == [16, 32, 32]
    assert [block.depthwise.conv.stride[0] for block in model.blocks] == [1, 2, 1]
    assert model.blocks[1].expand.conv.out_channels == 64
    assert model.blocks[1].squeeze_excite.reduce.out_channels == 8
    assert not any(isinstance(module, nn.SiLU) for module in model.modules())
    outputs = model(torch.randn(1, 3, 64, 64))
    assert outputs.last_hidden_state.shape == (1, 256, 32)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state.amax(1))


def test_the_first_block_of_a_stage_adds_its_input_unless_told_otherwise():
    same_shape = {"width_coefficient": 0.25}  # 8 channels in and out of the first block
    assert tower(**same_shape).blocks[0].residual
    without = tower(**same_shape, opening_residual=False)
    assert not without.blocks[0].residual and without.blocks[2].residual


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padding": "valid"}, "padding must be one of same, fixed"),
        ({"pooling": "attention"}, "pooling must be one of mean, max"),
        ({"stages": []}, "stages is empty"),
        ({"stages": [[1, 4, 1, 1, 16]]}, "odd kernel"),
        ({"stages": [[1, 3, 3, 1, 16]]}, "stride 1 or 2"),
        ({"stages": [[1, 3, 1, 16]]}, "rows of"),
        ({"symmetric_blocks": [2]}, 'symmetric_blocks need padding="fixed"'),
    ],
)
def test_impossible_geometry_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        EfficientNetTowerConfig(**fields)


@pytest.mark.parametrize(("size", "tokens"), [((64, 64), 4), ((96, 64), 6), ((65, 33), 6)])
def test_a_token_every_32_pixels(size, tokens):
    outputs = tower()(torch.randn(2, 3, *size), interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape == (2, tokens, 16)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(1))


def test_another_size_is_refused_unless_asked_for():
    with pytest.raises(ValueError, match="pixel_values are 96x64, this model takes 64x64"):
        tower()(torch.randn(1, 3, 96, 64))


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [m.running_mean.clone() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_learns_its_statistics_unless_frozen(frozen):
    model = tower(freeze_batch_norm=frozen, drop_connect_rate=0.0)
    before = statistics(model)
    pixels = torch.randn(2, 3, 64, 64)
    evaluated = model(pixels).last_hidden_state
    trained = model.train()(pixels).last_hidden_state
    assert torch.equal(evaluated, trained) == frozen
    assert all(torch.equal(old, new) == frozen for old, new in zip(before, statistics(model)))


def test_stochastic_depth_drops_whole_branches_in_training_only():
    model = tower(drop_connect_rate=0.9, freeze_batch_norm=True)
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert model.blocks[0].drop == 0.0
    block = next(block for block in reversed(model.blocks) if block.residual)
    features = torch.randn(64, block.project.conv.out_channels, 2, 2)
    branch = block.eval()(features) - features
    model.train()
    block.drop = 0.5
    outputs = block(features)
    dropped = torch.tensor([torch.equal(output, row) for output, row in zip(outputs, features)])
    assert 10 < dropped.sum() < 54
    torch.testing.assert_close(outputs[~dropped], (features + 2 * branch)[~dropped], rtol=1e-4, atol=1e-5)


def test_fresh_convolutions_keep_the_variance_of_what_flows_back():
    """He's initialisation for rectifiers: each input pixel reaches `k * k * outputs / groups` weights."""
    for module in tower(width_coefficient=1.0).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 250:
            fan_out = module.kernel_size[0] ** 2 * module.out_channels / module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.25)


def test_squeeze_excite_gates_channels_by_their_means():
    block = tower().blocks[5]
    gate, features = block.squeeze_excite, torch.randn(2, block.squeeze_excite.expand.out_channels, 3, 3)
    assert gate.reduce.out_channels == block.expand.conv.in_channels // 4  # a quarter of the block's input
    means = features.mean((2, 3))
    hidden = nn.functional.silu(nn.functional.linear(means, gate.reduce.weight.flatten(1), gate.reduce.bias))
    gates = nn.functional.linear(hidden, gate.expand.weight.flatten(1), gate.expand.bias).sigmoid()
    torch.testing.assert_close(gate(features), features * gates[:, :, None, None])


def captioner() -> BlipForConditionalGeneration:
    config = BlipConfig.variant(
        "tiny",
        vision_config={
            "model_type": "hfvlm_efficientnet_tower",
            "image_size": 64,
            "hidden_size": 40,
            "head_channels": 64,
            "width_coefficient": 0.25,
        },
    )
    return BlipForConditionalGeneration(config).eval()


def test_a_captioner_reads_it():
    model = captioner()
    assert type(model.vision_model) is EfficientNetTower
    ids = model.generate(pixel_values=torch.randn(2, 3, 64, 64), num_beams=2, max_new_tokens=5)
    assert len(ids) == 2


def test_a_frozen_tower_learns_no_statistics_and_drops_nothing():
    model = captioner()
    model.freeze("text")
    model.train()
    assert model.training and model.text_model.training and not model.vision_model.training
    buffers = {name: buffer.clone() for name, buffer in model.vision_model.named_buffers()}
    features = [model.vision_model(torch.ones(2, 3, 64, 64)).last_hidden_state for _ in range(2)]
    assert torch.equal(*features)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.vision_model.named_buffers())

    model.freeze("all")
    assert all(module.training for module in model.modules())
    model.eval().freeze("vision")
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.vision_model.stem.norm.training and not model.text_model.training and not model.lm_head.training
