"""Losses that autoencoders are trained with; tests/pipelines/train/kinds/test_vae_objective.py has their sum."""

import pytest
import torch

from kineograph.errors import UserError
from kineograph.models.vae.discriminator import DiscriminatorConfig, PatchDiscriminator
from kineograph.models.vae.losses import kl_loss, reconstruction_loss
from kineograph.models.vae.perceptual import Perceptual, perceptual_missing


def test_reconstruction_is_the_mean_difference_of_pixels():
    video = torch.zeros(2, 3, 2, 4, 4)
    other = torch.stack([torch.full((3, 2, 4, 4), 0.5), torch.full((3, 2, 4, 4), -2.0)])
    assert reconstruction_loss(video, other, "l1").tolist() == [0.5, 2.0]
    assert reconstruction_loss(video, other, "l2").tolist() == [0.25, 4.0]


def test_kl_is_that_of_two_gaussians():
    mean, logvar = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    posterior = torch.distributions.Normal(mean, logvar.div(2).exp())
    theirs = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_loss(mean, logvar), theirs.flatten(1).mean(1))
    assert kl_loss(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0]


@pytest.mark.parametrize("kind", ["frames", "video"])
def test_a_discriminator_judges_patches_of_each_video_alone(kind):
    torch.manual_seed(0)
    judge = PatchDiscriminator(DiscriminatorConfig(kind=kind, width=8, layers=2))
    video = torch.randn(2, 3, 3, 32, 32)
    both = judge(video)
    assert both.shape[0] == 2
    assert both.shape[1] > 3
    torch.testing.assert_close(both[1:], judge(video[1:]))


def test_a_perceptual_loss_without_its_weights_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "download https://download.pytorch.org/models/vgg16-397923af.pth" in perceptual_missing("vgg")
    with pytest.raises(UserError, match=r"needs the weights of alex: download .* to .*checkpoints"):
        Perceptual("alex")
    (tmp_path / "rubbish.pth").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="download it again"):
        Perceptual("alex", tmp_path / "rubbish.pth")


def test_the_perceptual_loss_with_its_weights(tmp_path, make_video):
    """Random weights in the file that torchvision would download: the lpips package agrees on what they say."""
    from kineograph.models.torchvision_shim import ensure_torchvision_importable

    ensure_torchvision_importable()
    import torchvision

    torch.manual_seed(0)
    backbone = torchvision.models.alexnet(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "alex.pth")
    assert perceptual_missing("alex", tmp_path / "alex.pth") == ""
    loss = Perceptual("alex", tmp_path / "alex.pth").train()
    video, other = make_video(2, 64, 64, batch=2), make_video(2, 64, 64, seed=1, batch=2).requires_grad_()
    distance = loss(other, video)
    assert distance.shape == (2,)
    torch.testing.assert_close(distance[0], loss.lpips(other[0].transpose(0, 1), video[0].transpose(0, 1)).mean())
    assert loss(video, video).tolist() == [0, 0]
    assert all((distance > 0).tolist())
    distance.sum().backward()
    assert other.grad.abs().sum() > 0
    features = loss.lpips.net.slice1[0].weight
    assert torch.equal(features, backbone.features[0].weight)
