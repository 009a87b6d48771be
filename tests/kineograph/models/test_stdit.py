"""STDiT: shapes, a timestep for each frame, captions that are there or not, and what a start is."""

import pytest
import torch

from kineograph.models.stdit import STDiT, STDiTConfig, TextNorm

C, TEXT = 4, 12


def inputs(frames=3, height=6, width=4, batch=2, tokens=5):
    g = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, C, frames, height, width, generator=g),
        "timestep": torch.rand(batch, frames, generator=g),
        "text": torch.randn(batch, tokens, TEXT, generator=g),
        "text_mask": torch.ones(batch, tokens, dtype=torch.bool),
        "fps": torch.full((batch,), 8.0),
        "size": torch.tensor([[24.0, 16.0]] * batch),
    }


def build(patch=(1, 2, 2), **shape):
    torch.manual_seed(0)
    return STDiT(
        STDiTConfig(in_channels=C, text_width=TEXT, patch=patch, **{"width": 32, "depth": 2, "heads": 4, **shape})
    )


@pytest.fixture
def fresh():
    return build()


@pytest.fixture
def model():
    """One whose zeros have been learned away, so that every input matters."""
    model = build()
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return model.eval()


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (3, 5, 7), (2, 1, 3), (4, 6, 2)])
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (1, 2, 3)])
def test_the_velocity_has_the_shape_of_the_latents(patch, frames, height, width):
    given = inputs(frames, height, width)
    assert build(patch)(**given).shape == given["latents"].shape


def test_the_last_layer_of_a_fresh_model_says_zero(fresh):
    said = []
    fresh.to_patches.register_forward_hook(lambda module, given, out: said.append(out))
    fresh(**inputs())
    assert not said[0].any()


@pytest.mark.parametrize("timestep", [1.0, 0.5, 0.05])
def test_clean_latents_that_are_predicted_are_told_as_the_velocity_from_them(timestep):
    given = {**inputs(), "timestep": torch.full((2, 3), timestep)}
    velocity = build(prediction="clean")(**given)  # a fresh model says that the clean latents are zero
    torch.testing.assert_close(given["latents"] - timestep * velocity, torch.zeros_like(velocity), atol=1e-6, rtol=0)


def test_without_noise_the_velocity_stays_finite():
    given = {**inputs(), "timestep": torch.zeros(2, 3)}
    assert build(prediction="clean")(**given).isfinite().all()


def test_after_one_step_gradients_reach_every_parameter(fresh):
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    given = inputs()
    given["text_mask"][0] = False  # the parameter for "no caption" is used as well
    target = torch.randn(given["latents"].shape, generator=torch.Generator().manual_seed(3))
    for _ in range(3):  # zeros open one after the other: the output, then the gates, then what is behind them
        optimizer.zero_grad()
        (fresh(**given) - target).square().mean().backward()
        optimizer.step()
    still = [name for name, p in fresh.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_each_frame_has_a_timestep_of_its_own(model):
    with torch.no_grad():
        for block in model.blocks:  # without attention over time nothing else can carry one frame's timestep to another
            block.temporal.out.weight.zero_()
        given = inputs()
        before = model(**given)
        given["timestep"][:, 1] += 0.3
        changed = (model(**given) - before).abs().amax(dim=(0, 1, 3, 4)) > 1e-6
    assert changed.tolist() == [False, True, False]


def test_frames_see_each_other_through_attention_over_time(model):
    given = inputs()
    before = model(**given)
    given["latents"][:, :, 2] += 1
    assert (model(**given) - before)[:, :, 0].abs().max() > 1e-4


def test_clips_of_a_batch_do_not_see_each_other(model):
    given = inputs()
    alone = model(**{name: value[:1] for name, value in given.items()})
    torch.testing.assert_close(model(**given)[:1], alone, atol=1e-5, rtol=0)


def test_padded_text_is_as_if_it_were_not_there(model):
    given = inputs()
    padding = torch.full((2, 3, TEXT), 9.0)
    padded = {
        **given,
        "text": torch.cat([given["text"], padding], dim=1),
        "text_mask": torch.cat([given["text_mask"], torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    }
    torch.testing.assert_close(model(**padded), model(**given), atol=1e-5, rtol=0)


def test_without_a_caption_the_padding_is_not_read(model):
    given = inputs()
    given["text_mask"][:] = False
    before = model(**given)
    given["text"] = torch.full_like(given["text"], 9.0)
    assert torch.equal(model(**given), before)


def test_a_row_without_tokens_is_the_same_in_any_batch(model):
    given = inputs()
    given["text_mask"][0] = False
    short = {name: value[:1] for name, value in given.items()}
    short["text"], short["text_mask"] = torch.zeros(1, 1, TEXT), torch.zeros(1, 1, dtype=torch.bool)
    torch.testing.assert_close(model(**given)[:1], model(**short), atol=1e-5, rtol=0)


@pytest.mark.parametrize("condition", ["text", "fps", "size"])
def test_every_condition_matters(model, condition):
    given = inputs()
    before = model(**given)
    given[condition] = given[condition] * 2 + 1
    assert (model(**given) - before).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [{"width": 30}, {"width": 24, "heads": 4}, {"patch": (2, 2, 2)}])
def test_a_shape_that_cannot_work_is_refused(shape):
    with pytest.raises(ValueError, match="must"):
        STDiTConfig(in_channels=C, text_width=TEXT, **{"width": 32, "heads": 4, **shape})


class TestTextNorm:
    @pytest.fixture
    def captions(self):
        """States of 400 captions whose channels differ in place and spread, the last hardly at all."""
        g = torch.Generator().manual_seed(4)
        spread = torch.tensor([3.0, 1.0, 0.5, 0.2])
        base = torch.randn(400, 1, 4, generator=g) * spread
        return list(base + 0.1 * torch.randn(400, 6, 4, generator=g) * spread + 5)

    @pytest.fixture
    def norm(self, captions):
        norm = TextNorm(4)
        norm.fit(captions)
        return norm

    def test_tokens_are_standardised(self, norm, captions):
        states, _ = norm(torch.stack(captions), torch.ones(400, 6, dtype=torch.bool))
        flat = states.flatten(0, 1)
        torch.testing.assert_close(flat.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(flat.std(0), torch.ones(4), atol=1e-3, rtol=0)

    def test_pooled_captions_are_white(self, norm, captions):
        _, pooled = norm(torch.stack(captions), torch.ones(400, 6, dtype=torch.bool))
        # Every direction is shrunk by variance / (variance + floor·largest), which is above 0.99 for these.
        torch.testing.assert_close(torch.cov(pooled.T), torch.eye(4), atol=0.01, rtol=0)

    def test_a_direction_without_variance_is_not_blown_up(self):
        g = torch.Generator().manual_seed(5)
        line = torch.randn(200, 1, 1, generator=g) * torch.tensor([1.0, 1.0])  # nothing in (1, -1)
        norm = TextNorm(2)
        norm.fit(list(line + 1e-5 * torch.randn(200, 1, 2, generator=g)))
        assert float(norm.whitening.abs().max()) < 1 / norm.floor

    def test_a_row_without_tokens_pools_to_zero(self, norm):
        _, pooled = norm(torch.randn(2, 3, 4), torch.tensor([[False] * 3, [True] * 3]))
        assert not pooled[0].any()

    def test_unfitted_it_changes_nothing(self):
        states = torch.randn(2, 3, 4)
        assert torch.equal(TextNorm(4)(states, torch.ones(2, 3, dtype=torch.bool))[0], states)

    def test_a_single_caption_leaves_it_as_it_is(self):
        norm = TextNorm(4)
        norm.fit([torch.randn(3, 4)])
        assert torch.equal(norm.whitening, torch.eye(4))
