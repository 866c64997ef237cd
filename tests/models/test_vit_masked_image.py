"""Masked patch prediction: what is chosen, what becomes of it, the colours, and that it can be learned."""

import pytest
import torch

from hfvlm import VitConfig, VitForMaskedImageModeling
from hfvlm.losses.masked_image import choose_patches, corrupt, mean_colours


def build(**fields) -> VitForMaskedImageModeling:
    torch.manual_seed(0)
    return VitForMaskedImageModeling(VitConfig.variant("tiny", **fields)).eval()


def pixels(batch: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_half_of_each_images_patches_are_chosen_afresh():
    torch.manual_seed(0)
    first, second = (choose_patches(1000, 16, 0.5, torch.device("cpu")) for _ in range(2))
    assert (first.sum(1) == 8).all() and not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert (first.float().mean(0) - 0.5).abs().max() < 0.1
    torch.manual_seed(0)
    assert torch.equal(choose_patches(1000, 16, 0.5, torch.device("cpu")), first)
    assert choose_patches(3, 2, 0.1, torch.device("cpu")).sum(1).tolist() == [1, 1, 1]


def test_chosen_patches_are_masked_swapped_or_kept():
    torch.manual_seed(0)
    batch, patches = 200, 49
    embeds = torch.arange(batch * patches, dtype=torch.float32).view(batch, patches, 1).expand(-1, -1, 4)
    chosen = choose_patches(batch, patches, 0.5, torch.device("cpu"))
    changed = corrupt(embeds, chosen, torch.full((1, 1, 4), -1.0), 0.8, 0.1)
    assert torch.equal(changed[~chosen], embeds[~chosen])
    before, after = embeds[chosen][:, 0], changed[chosen][:, 0]
    masked, kept = after == -1, after == before
    swapped = ~masked & ~kept
    shares = [part.float().mean().item() for part in (masked, swapped, kept)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert torch.equal(after[swapped] // patches, before[swapped] // patches)  # from the same image
    assert len(set((after[swapped] - before[swapped]).tolist())) > 40  # and from anywhere in it


def test_an_image_of_one_patch_has_no_other():
    embeds = torch.ones(3, 1, 4)
    chosen = torch.ones(3, 1, dtype=torch.bool)
    assert torch.equal(corrupt(embeds, chosen, torch.zeros(1, 1, 4), 0.0, 1.0), embeds)


def test_colours_are_the_means_in_three_bits():
    image = torch.zeros(1, 3, 16, 24)
    image[:, 0, :8, :8] = 1.0  # red
    image[:, 1, :8, 8:16] = 0.5
    image[:, :, 8:, 16:] = 1.0  # white
    image[:, 2, 8:, :4] = 1.0  # half of a patch
    classes = mean_colours((image - 0.5) / 0.5, (2, 3), 0.5, 0.5, 3)
    assert classes.tolist() == [[7 * 64, 4 * 8, 0, 4, 0, 511]]
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert mean_colours(normalised, (2, 3), mean, std, 3).tolist() == classes.tolist()
    assert mean_colours(image[:, :1] * 2 - 1, (2, 3), 0.5, 0.5, 8).tolist()[0][:2] == [255, 0]


def test_the_loss_is_the_cross_entropy_of_the_chosen():
    model = build()
    chosen = torch.zeros(2, 16, dtype=torch.bool)
    chosen[0, 3] = chosen[1, :5] = True
    outputs = model(pixels(), bool_masked_pos=chosen)
    assert outputs.logits.shape == (2, 16, 512) and torch.equal(outputs.bool_masked_pos, chosen)
    targets = mean_colours(pixels(), (4, 4), 0.5, 0.5, 3)
    expected = torch.nn.functional.cross_entropy(outputs.logits[chosen], targets[chosen])
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.loss_mim, expected)
    assert model(pixels(), return_loss=False).loss is None
    none = model(pixels(), bool_masked_pos=torch.zeros(2, 16))
    assert none.loss == 0.0


def test_nothing_chosen_is_nothing_changed():
    model = build()
    features = model.vision_model(pixels())
    logits = model(pixels(), bool_masked_pos=torch.zeros(2, 16)).logits
    torch.testing.assert_close(logits, model.colour_head(features.last_hidden_state[:, 1:]))


def test_a_norm_of_the_pooled_vector_norms_the_patches_here():
    model = build(vision_config={"final_norm": "pooled"})
    tokens = model.vision_model(pixels()).last_hidden_state[:, 1:]
    logits = model(pixels(), bool_masked_pos=torch.zeros(2, 16)).logits
    torch.testing.assert_close(logits, model.colour_head(model.vision_model.norm(tokens)))


def test_evaluation_compiles_whole():
    model = build()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels()).loss, model(pixels()).loss)


def test_a_seed_draws_the_same_for_every_image():
    chosen = choose_patches(3, 400, 0.5, torch.device("cpu"), seed=0)
    assert torch.equal(chosen[0], chosen[2]) and chosen.sum(1).tolist() == [200] * 3
    assert not torch.equal(chosen, choose_patches(3, 400, 0.5, torch.device("cpu"), seed=1))
    runs = chosen[0, 1:] == chosen[0, :-1]
    assert runs.float().mean().item() == pytest.approx(0.5, abs=0.1)  # neighbours know nothing of each other
    embeds = torch.arange(400.0).view(1, 400, 1)
    changed = corrupt(embeds, torch.ones(1, 400, dtype=torch.bool), torch.full((1, 1, 1), -1.0), 0.8, 0.1, seed=0)
    shares = [part.float().mean().item() for part in (changed == -1, changed == embeds)]
    assert shares == pytest.approx([0.8, 0.1], abs=0.05)


def test_evaluation_always_chooses_the_same():
    model = build()
    state = torch.get_rng_state()
    first, second = model(pixels()), model(pixels())
    assert torch.equal(first.loss, second.loss) and torch.equal(torch.get_rng_state(), state)
    assert (first.bool_masked_pos.sum(1) == 8).all()
    alone = model(pixels()[1:])
    torch.testing.assert_close(alone.logits[0], first.logits[1])


def test_training_follows_the_seed():
    model = build().train()

    def choices(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        outputs = model(pixels())
        return outputs.bool_masked_pos, outputs.loss

    (first, loss), (same, again), (other, _) = choices(0), choices(0), choices(1)
    assert torch.equal(first, same) and torch.equal(loss, again) and not torch.equal(first, other)
    assert not torch.equal(model(pixels()).bool_masked_pos, model(pixels()).bool_masked_pos)


def test_other_sizes_and_the_shape_of_the_choice():
    model = build()
    outputs = model(pixels(2, 24, 40), interpolate_pos_encoding=True)
    assert outputs.logits.shape == (2, 15, 512) and outputs.loss.isfinite()
    for wrong in (torch.zeros(2, 15), torch.zeros(2, 4, 4), torch.zeros(16)):
        with pytest.raises(ValueError, match=r"bool_masked_pos must have shape \[2, 16\], an entry a patch"):
            model(pixels(), bool_masked_pos=wrong.bool())


@pytest.mark.parametrize(
    "tower",
    [{}, {"class_token": False, "pooling": "mean"}, {"final_norm": "pooled"}, {"final_norm": "none"}],
    ids=["class token", "patches alone", "norm of the pooled", "no norm"],
)
def test_every_parameter_learns_and_the_colours_are_learned(tower):
    model = build(vision_config=tower).train()
    images = torch.randint(0, 2, (8, 3, 4, 4)).float().repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 5.5 and losses[-1] < 2.5  # eight colours by guessing: 2.08
