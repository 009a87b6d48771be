"""The loss of an autoencoder's step, and the discriminator that it is judged by."""

import pytest
import torch

from kineograph.models.vae import Reconstruction
from kineograph.models.vae.losses import VAELossConfig
from pipelines.train.kinds.vae.adversary import Adversary
from pipelines.train.kinds.vae.config import DiscriminatorOptimizerConfig
from pipelines.train.kinds.vae.objective import Objective, global_adaptive_weight

LOSS = {"kl_weight": 0.1, "adversarial": {"weight": 0.5, "discriminator": {"width": 8, "layers": 2}}}
FRAMES = {"kind": "frames", "width": 8, "layers": 2}


class FixedDistance:
    """In the place of LPIPS, whose weights are not here."""

    def __call__(self, video, reference):
        return (video - reference).square().flatten(1).mean(1) + 0.25


def adversary(lr=1e-2, **discriminator):
    config = VAELossConfig.model_validate({"adversarial": {"discriminator": {**FRAMES, **discriminator}}}).adversarial
    return Adversary(config, DiscriminatorOptimizerConfig(lr=lr), 0, torch.device("cpu"))


def made_by(decoder, video):
    return Reconstruction(decoder(video), video.mean((3, 4)), video.std((3, 4)).log())


@pytest.mark.parametrize("kind", ["frames", "video"])
def test_a_discriminator_learns_to_tell_noise_from_pictures(kind):
    torch.manual_seed(0)
    judge = adversary(lr=2e-3, kind=kind)
    coarse = torch.randn(40, 2, 3, 2, 4, 4)
    for videos in coarse:
        real = torch.nn.functional.interpolate(videos, size=(2, 32, 32), mode="trilinear", align_corners=True)
        losses = judge.learn(real / 2, real / 2 + 0.5 * torch.randn_like(real), slots=2)
    assert losses.mean() < 0.5  # 1 is knowing nothing


def test_the_hinge_loss_is_that_of_both_sides_margins():
    torch.manual_seed(0)
    judge, real, fake = adversary(), torch.randn(2, 3, 2, 16, 16), torch.randn(2, 3, 2, 16, 16, requires_grad=True)
    with torch.no_grad():
        of_real, of_fake = judge.discriminator(real), judge.discriminator(fake)
    expected = ((1 - of_real).clamp_min(0).mean(1) + (1 + of_fake).clamp_min(0).mean(1)) / 2
    torch.testing.assert_close(judge.learn(real, fake, slots=2), expected)
    assert fake.grad is None


def test_the_adaptive_weight_makes_both_gradients_equally_long():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    hidden = layer(torch.randn(8, 4))
    looks, deceit = hidden.square().mean(1), 50 * hidden.mean(1)
    weight = global_adaptive_weight(looks, deceit, layer.weight, slots=8)
    (of_looks,) = torch.autograd.grad(looks.mean(), layer.weight, retain_graph=True)
    (of_deceit,) = torch.autograd.grad(weight * deceit.mean(), layer.weight)
    assert of_deceit.norm().item() == pytest.approx(of_looks.norm().item(), rel=1e-3)


@pytest.mark.parametrize("perceptual", [None, FixedDistance()])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_total_is_the_weighted_sum_of_its_parts(kind, perceptual):
    torch.manual_seed(0)
    config = VAELossConfig.model_validate({**LOSS, "reconstruction": kind, "perceptual": {"weight": 0.3}})
    decoder, video = torch.nn.Conv3d(3, 3, 3, padding=1), torch.rand(2, 3, 5, 16, 16) * 2 - 1
    for judge in (None, Adversary(config.adversarial, DiscriminatorOptimizerConfig(), 0, torch.device("cpu"))):
        total, parts = Objective(config, video, perceptual, judge, 2)(made_by(decoder, video), decoder.weight)
        assert ("adversarial" in parts, "perceptual" in parts) == (judge is not None, perceptual is not None)
        expected = parts["reconstruction"] + 0.1 * parts["kl"]
        if perceptual is not None:
            expected = expected + 0.3 * parts["perceptual"]
        if judge is not None:
            expected = expected + 0.5 * parts["adaptive_weight"] * parts["adversarial"]
        torch.testing.assert_close(total.detach(), expected)
        total.sum().backward()
        assert decoder.weight.grad is not None
