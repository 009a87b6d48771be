"""Image and causal autoencoders of diffusers: as that library has them, behind our interface."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from kineograph.config import parse_config
from kineograph.errors import RecipeError, UserError
from kineograph.models.vae import (
    CausalVAEConfig,
    ImageVAEConfig,
    PatchPCA,
    PatchPCAConfig,
    build_autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from kineograph.models.vae.architectures import CACHED_CLASSES, CAUSAL_CLASSES, PRESETS, WINDOWED_CLASSES
from kineograph.models.vae.seams import seams
from pipelines.train.kinds.vae.kind import Reconstructor

STRIDES = {
    "AutoencoderKL": (1, 2, 2),
    "AutoencoderKLWan": (4, 4, 4),
    "AutoencoderKLWan 2.2": (4, 8, 8),
    "AutoencoderKLQwenImage": (4, 4, 4),
    "AutoencoderKLMagvit": (4, 8, 8),
    "AutoencoderKLHunyuanVideo": (4, 8, 8),
    "AutoencoderKLHunyuanVideo15": (4, 4, 4),
    "AutoencoderKLLTXVideo": (4, 4, 4),
    "AutoencoderKLMochi": (6, 8, 8),
    "AutoencoderKLCosmos": (4, 4, 4),
}

WITH_LINEAR_PATH = ["AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLWan 2.2", "AutoencoderKLQwenImage"]
WITH_LINEAR_PATH += ["AutoencoderKLMagvit", "AutoencoderKLHunyuanVideo"]


def trained_on(vae, video, noise=None):
    """What training sees of ``vae``: its Reconstruction of ``video``."""
    if noise is None:
        with torch.no_grad():
            noise = torch.randn(vae.encode(video).shape)
    return Reconstructor(vae)(video, noise, lambda out, _: out)


def test_every_class_on_the_lists_is_tried_here():
    assert set(CAUSAL_CLASSES) | {"AutoencoderKL"} == {name.split()[0] for name in STRIDES}
    assert set(CACHED_CLASSES).isdisjoint(WINDOWED_CLASSES)


@pytest.mark.parametrize(("name", "strides"), STRIDES.items())
def test_a_video_has_one_latent_for_its_first_frame_and_one_for_every_stride(name, strides, make_vae, make_video):
    vae = make_vae(name)
    assert vae.strides == strides
    for latents in (1, 2, 3):
        video = make_video(1 + strides[0] * (latents - 1), 32, 48)
        with torch.no_grad():
            encoded = vae.encode(video)
            decoded = vae.decode(encoded)
        assert encoded.shape == (1, vae.channels, latents, 32 // strides[1], 48 // strides[2])
        assert decoded.shape == video.shape
        assert decoded.abs().max() <= 1


@pytest.mark.parametrize("name", STRIDES)
def test_the_whole_video_is_coded_as_diffusers_does(name, make_vae, make_video):
    vae, video = make_vae(name), make_video(1 + 2 * STRIDES[name][0], 32, 32)
    theirs = video.transpose(1, 2).flatten(0, 1) if name == "AutoencoderKL" else video
    with torch.no_grad():
        mean = vae.model.encode(theirs).latent_dist.mode()
        frames = vae.model.decode(mean).sample.clamp(-1, 1)
        if name == "AutoencoderKL":
            mean, frames = (x[None].transpose(1, 2) for x in (mean, frames))
        latents = vae.encode(video)
        torch.testing.assert_close(vae.latent_norm.denormalise(latents), mean, atol=2e-5, rtol=0)
        torch.testing.assert_close(vae.decode(latents), frames, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in STRIDES if n.split()[0] in CACHED_CLASSES or n == "AutoencoderKLCosmos"])
def test_the_first_latent_of_a_video_is_that_of_its_first_frame_alone(name, make_vae, make_video):
    vae, video = make_vae(name), make_video(1 + 2 * STRIDES[name][0], 32, 32)
    with torch.no_grad():
        latents = vae.encode(video)
        torch.testing.assert_close(latents[:, :, :1], vae.encode(video[:, :, :1]), atol=1e-5, rtol=0)
        first = vae.decode(latents[:, :, :1])
        torch.testing.assert_close(vae.decode(latents)[:, :, :1], first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WINDOWED_CLASSES)
def test_windows_come_close_to_the_whole_and_closer_when_they_overlap_more(name, make_vae, make_video):
    """On random weights, whose attention and norms look at the whole video; 14 dB is what the worst of them holds."""
    stride, side = STRIDES[name][:2]
    video = make_video(1 + stride * 16, 2 * side, 2 * side)
    little = seams(make_vae(name, chunk=4, overlap=1), video, chunked=True)
    much = seams(make_vae(name, chunk=8, overlap=4), video, chunked=True)
    assert min(little.encoded, little.decoded) >= 14
    assert much.decoded > little.decoded
    assert min(seams(make_vae(name, chunk=16), video, chunked=True)) == float("inf")  # one window


@pytest.mark.parametrize("linear_path", [False, True])
@pytest.mark.parametrize("name", STRIDES)
def test_training_reaches_every_weight(name, linear_path, make_vae, make_video):
    if linear_path and name not in WITH_LINEAR_PATH:
        with pytest.raises(UserError, match=f"does not go with {name}: set linear_path=false"):
            make_vae(name, linear_path=True)
        return
    vae, video = make_vae(name, linear_path=linear_path).train(), make_video(1 + STRIDES[name][0], 16, 16, batch=2)
    out = trained_on(vae, video)
    assert out.video.shape == video.shape
    assert out.mean.shape == out.logvar.shape == vae.encode(video).shape
    (out.video.square().mean() + out.logvar.mean()).backward()
    assert all(weight.grad is not None for weight in vae.parameters())
    assert any(weight is vae.last_layer for weight in vae.model.decoder.parameters())


def test_training_decodes_a_sample_of_the_posterior(make_vae, make_video):
    vae, video = make_vae("AutoencoderKLWan"), make_video(5, 16, 16)
    with torch.no_grad():
        noise = torch.randn(vae.encode(video).shape)
        out, again, other = (trained_on(vae, video, n) for n in (noise, noise, -noise))
        sample = vae.latent_norm.normalise(out.mean + out.logvar.div(2).exp() * noise)
        assert torch.equal(out.video, again.video)
        assert not torch.equal(out.video, other.video)
        torch.testing.assert_close(vae.decode(sample), out.video.clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_causal_autoencoder_learns(make_vae, make_video):
    vae, video = make_vae("AutoencoderKLWan").train(), make_video(5, 16, 16, batch=2)
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = (trained_on(vae, video).video - video).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1.5


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_fitted_latents_have_zero_mean_and_unit_variance(name, make_vae, make_video):
    vae = make_vae(name)
    videos = [make_video(frames, 16, side, seed=frames)[0] for frames, side in ((9, 16), (7, 24), (1, 16))]
    before = vae.decode(vae.encode(videos[0][None]))
    vae.fit_latents(iter(videos))
    latents = [vae.encode(v[None, :, : v.shape[1] - (v.shape[1] - 1) % vae.strides[0]]) for v in videos]
    values = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1)
    torch.testing.assert_close(values.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(vae.encode(videos[0][None])), before, atol=1e-4, rtol=0)


def test_no_videos_fit_no_latents(make_vae):
    with pytest.raises(UserError, match="at least two values"):
        make_vae("AutoencoderKLWan").fit_latents([])


def test_a_size_that_does_not_divide_is_refused(make_vae):
    vae = make_vae("AutoencoderKLWan")
    for size in ((5, 16, 18), (4, 16, 16)):
        with pytest.raises(ValueError, match="do not divide"):
            vae.encode(torch.zeros(1, 3, *size))
        with pytest.raises(ValueError, match="do not divide"):
            list(vae.encode_stream([torch.zeros(1, 3, *size)]))


@pytest.mark.parametrize(
    ("raw", "model", "message"),
    [
        ({"architecture": "causal-mimi"}, CausalVAEConfig, "no preset 'causal-mimi'; known: causal-mini"),
        ({"architecture": "causal-mini"}, ImageVAEConfig, "known: image-"),
        ({"architecture": {"class_name": "AutoencoderKLAllegro"}}, CausalVAEConfig, "is none of AutoencoderKLWan"),
        ({"architecture": {"settings": {}}}, CausalVAEConfig, "architecture.class_name"),
        ({"architecture": 3}, CausalVAEConfig, "architecture"),
    ],
)
def test_an_architecture_that_is_not_there_is_named(raw, model, message):
    with pytest.raises(RecipeError, match=message):
        parse_config(raw, model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_dims": 8}, "no setting 'base_dims'; did you mean 'base_dim'"),
        ({"dim_mult": [1, 2, 2, 4], "temperal_downsample": [True]}, "cannot be built"),
    ],
)
def test_settings_that_the_class_does_not_take_are_refused_in_one_line(settings, message):
    config = CausalVAEConfig.model_validate({"architecture": {"class_name": "AutoencoderKLWan", "settings": settings}})
    with pytest.raises(UserError, match=message) as error:
        build_autoencoder(config)
    assert "\n" not in str(error.value)


def test_decoders_that_draw_noise_are_refused():
    settings = {"timestep_conditioning": True, "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5}
    settings |= {name: [8] * 4 for name in ("block_out_channels", "decoder_block_out_channels")}
    config = {"architecture": {"class_name": "AutoencoderKLLTXVideo", "settings": settings}}
    with pytest.raises(UserError, match="decodes the same video each time"):
        build_autoencoder(CausalVAEConfig.model_validate(config))


def test_a_preset_is_its_architecture():
    config = parse_config({"architecture": "causal-mini"}, CausalVAEConfig)
    assert config.architecture == PRESETS["causal-mini"]
    vae = build_autoencoder(config)
    assert (vae.strides, vae.channels) == ((2, 4, 4), 16)
    vae = build_autoencoder(parse_config({"architecture": "image-mini"}, ImageVAEConfig))
    assert (vae.strides, vae.channels) == ((1, 4, 4), 16)


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLWan 2.2", "AutoencoderKLQwenImage"])
def test_a_fresh_network_passes_a_picture_on(name, make_vae):
    """Its blocks begin as their shortcuts, values keep their size, and the posterior is narrow."""
    vae = make_vae(name)
    torch.manual_seed(0)
    for block in (vae.model.encoder.mid_block, vae.model.decoder.mid_block):
        x = torch.randn(2, block.dim, 3, 4, 4)
        assert torch.equal(block(x), x)
    with torch.no_grad():
        out = trained_on(vae, torch.rand(2, 3, 5, 16, 16) * 2 - 1)
    assert out.logvar.max() < -3
    assert 0.1 < out.mean.std() < 10
    assert 0.1 < out.video.std() < 10


@pytest.mark.parametrize(
    "name", ["AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLMagvit"]
)
def test_training_with_a_linear_path_begins_where_patch_pca_ends(name, make_vae, make_video):
    vae = make_vae(name, linear_path=True)
    frames, stride = vae.strides[:2]
    videos = list(make_video(1 + 2 * frames, 32, 32, seed=3, batch=4))
    vae.fit_linear_path(videos)
    config = PatchPCAConfig(stride=stride, temporal_stride=frames, channels=vae.channels, decoder_noise=None)
    pca = PatchPCA(config)
    pca.fit(videos)
    length = 1 if name == "AutoencoderKL" else 3  # to an image autoencoder every frame is a first one
    video = make_video(1 + frames * (length - 1), 16, 24, seed=4)
    with torch.no_grad():
        latents = pca.encode(video)
        torch.testing.assert_close(vae.encode(video), latents, atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(latents), pca.decode(latents), atol=1e-4, rtol=0)


def test_a_linear_path_goes_with_streams_and_folders(make_vae, make_video, tmp_path):
    vae, video = make_vae("AutoencoderKLWan", linear_path=True), make_video(13, 16, 24)
    with torch.no_grad():
        latents = vae.encode(video)
        frames = vae.decode(latents)
    same = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
    same(torch.cat(list(vae.encode_stream(video.split(2, dim=2))), dim=2), latents)
    same(torch.cat(list(vae.decode_stream(latents.split(3, dim=2))), dim=2), frames)
    save_autoencoder(vae, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_autoencoder(tmp_path).encode(video), latents)


def test_a_class_that_is_first_met_while_shapes_are_asked_for_is_whole_afterwards():
    """diffusers imports a class when it is asked for, and Cosmos' file has tensors."""
    code = (
        "import torch\n"
        "from kineograph.models.vae.architectures import diffusers_class\n"
        "with torch.device('meta'): diffusers_class('AutoencoderKLCosmos')\n"
        "from diffusers.models.autoencoders.autoencoder_kl_cosmos import _WAVELETS\n"
        "assert {tensor.device.type for tensor in _WAVELETS.values()} == {'cpu'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
