"""Patch-PCA: what it keeps, what it loses, and that an image is a video of one frame."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from kineograph.errors import UserError
from kineograph.models.vae import PatchPCA, PatchPCAConfig, fingerprint


def clips(count=6, frames=9, seed=0):
    """Smooth videos (3 T H W) in [-1, 1]: what a few components can hold."""
    coarse = torch.randn(count, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    size = (frames, 16, 24)
    return list(torch.nn.functional.interpolate(coarse, size=size, mode="trilinear").clamp(-2, 2) / 2)


def fitted(videos=None, **config):
    vae = PatchPCA(PatchPCAConfig(**config))
    return vae, vae.fit(clips() if videos is None else videos)


@pytest.mark.parametrize("decoder_noise", [None, 0])
def test_with_all_components_nothing_is_lost(decoder_noise):
    videos = clips()
    vae, kept = fitted(videos, stride=2, temporal_stride=1, channels=12, decoder_noise=decoder_noise)
    video = torch.stack(videos)
    assert kept == pytest.approx(1)
    torch.testing.assert_close(vae.decode(vae.encode(video)), video, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["first", "rest"])
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_the_error_is_the_variance_that_is_not_kept(part, channels):
    rows = torch.randn(400, 48 if part == "first" else 192) @ torch.diag(
        0.97 ** torch.arange(48 if part == "first" else 192)
    )
    pca = getattr(PatchPCA(PatchPCAConfig(channels=channels)), part)
    kept = pca.fit([rows])
    error = (pca.decode(pca.encode(rows)) - rows).square().sum()
    variance = (rows - rows.mean(0)).square().sum()
    assert float(error / variance) == pytest.approx(1 - kept, abs=1e-4)


def test_a_whole_video_loses_no_more_than_it_says():
    videos = clips()
    vae, kept = fitted(videos, channels=8)
    video = torch.stack(videos)
    error = (vae.decode(vae.encode(video)) - video).square().mean()
    assert error <= (1 - kept) * video.square().mean() + 1e-6


def test_the_first_latent_of_a_video_is_that_of_its_first_frame_alone():
    vae, _ = fitted()
    video = torch.stack(clips(seed=1))
    assert torch.equal(vae.encode(video)[:, :, :1], vae.encode(video[:, :, :1]))


def test_the_first_frame_decodes_without_the_others():
    vae, _ = fitted()
    latents = vae.encode(torch.stack(clips(seed=1)))
    assert torch.equal(vae.decode(latents)[:, :, :1], vae.decode(latents[:, :, :1]))


def error(vae, videos, noise=0.0):
    """Mean squared error behind the first frames, of latents with errors of deviation ``noise``."""
    video = torch.stack(videos)
    latents = vae.encode(video)
    latents = latents + noise * torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    return float((vae.decode(latents) - video)[:, :, 1:].square().mean())


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("frames", [5, 9, 17])
def test_a_decoder_is_the_best_for_the_noise_that_it_is_fitted_to(noise, frames):
    videos = clips(count=40, frames=frames)
    fits = (None, 0.0, 0.1, 0.3)
    errors = {fit: error(fitted(videos, channels=6, decoder_noise=fit)[0], videos, noise) for fit in fits}
    assert min(errors, key=errors.get) == noise


@pytest.mark.parametrize("frames", [1, 9])
def test_stills_fit_a_decoder_that_does_not_blow_up(frames):
    """Their latents beside each other are equal but for rounding."""
    stills = [v[:, :1].expand(-1, frames, -1, -1) for v in clips(count=20)]
    moving = clips(count=6, seed=7)
    alone, beside = (error(fitted(stills, channels=6, decoder_noise=n)[0], moving) for n in (None, 0.0))
    assert beside <= (1.001 if frames == 1 else 3) * alone


def test_tubes_meet_where_latents_have_errors():
    """At the boundary of the tubes frames differ as they do within them, where each decoded alone jumps."""
    videos = clips(count=40, frames=17)
    jumps = {}
    for fit in (None, 0.1):
        vae, _ = fitted(videos, channels=6, decoder_noise=fit)
        latents = vae.encode(torch.stack(videos))
        noise = 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
        step = vae.decode(latents + noise).diff(dim=2).abs().mean((0, 1, 3, 4))
        at = torch.tensor([n % 4 == 0 for n in range(16)])
        at[0] = False  # the first frame is decoded alone
        jumps[fit] = float(step[at].mean() / step[~at][1:].mean())
    assert jumps[0.1] < 0.75 * jumps[None]


def test_without_a_video_of_two_tubes_nothing_is_seen_behind_them():
    vae, _ = fitted(clips(frames=5), channels=4)
    latents = vae.encode(torch.stack(clips(frames=9, seed=1)))
    changed = latents.clone()
    changed[:, :, 2] += 1
    torch.testing.assert_close(vae.decode(changed)[:, :, :5], vae.decode(latents)[:, :, :5])


def test_no_turn_of_the_tubes_components_brings_them_nearer_to_the_frame_before():
    videos = clips(frames=5)
    vae, _ = fitted(videos, channels=4)
    before, after = (vae.encode(torch.stack(videos)).double()[:, :, i].transpose(0, 1).flatten(1) for i in (0, 1))
    turned = torch.randn(100, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    turns = torch.linalg.matrix_exp(0.3 * (turned - turned.mT))
    distances = (turns @ after - before).square().sum((1, 2))
    assert (after - before).square().sum() < distances.min()


def test_latents_have_unit_variance():
    videos = clips()
    vae, _ = fitted(videos, channels=4)
    latents = vae.encode(torch.stack(videos))[:, :, 1:]
    assert latents.var(dim=(0, 2, 3, 4), unbiased=False).mean() == pytest.approx(1, abs=1e-3)


def test_equal_data_gives_an_equal_autoencoder():
    once, again = fitted()[0].state_dict(), fitted()[0].state_dict()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_saved_autoencoder_is_the_same(tmp_path):
    vae, _ = fitted()
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    loaded = PatchPCA(PatchPCAConfig())
    loaded.load_state_dict(load_file(tmp_path / "vae.safetensors"))
    video = torch.stack(clips(seed=2))
    assert torch.equal(loaded.encode(video), vae.encode(video))


def test_images_alone_fit_tubes_that_stand_still():
    vae, _ = fitted(clips(frames=1))
    still = clips(seed=3, frames=1)[0][None].expand(-1, -1, 5, -1, -1)
    decoded = vae.decode(vae.encode(still))
    torch.testing.assert_close(decoded[:, :, 1:], decoded[:, :, 1:2].expand(-1, -1, 4, -1, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(9, 15, 24), (9, 16, 22), (8, 16, 24), (4, 16, 24)])
def test_a_size_that_does_not_divide_is_refused(size):
    vae, _ = fitted()
    with pytest.raises(ValueError, match="do not divide"):
        vae.encode(torch.zeros(1, 3, *size))


def test_more_channels_than_pixels_are_refused():
    with pytest.raises(ValueError, match="more than the 12 pixels"):
        PatchPCAConfig(stride=2, channels=13)


def test_a_single_patch_cannot_be_fitted():
    with pytest.raises(UserError, match="two patches"):
        fitted([torch.zeros(3, 1, 4, 4)])


def test_videos_that_are_read_anew_each_time_fit_the_same():
    class Read:
        def __iter__(self):
            return iter(clips())

    assert fingerprint(fitted(Read())[0]) == fingerprint(fitted()[0])
