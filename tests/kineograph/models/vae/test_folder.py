"""Autoencoders on disk: ours, and those of diffusers through its own loader."""

import json

import pytest
import torch

from kineograph.errors import UserError
from kineograph.models.vae import (
    CausalVAE,
    ImageVAE,
    build_autoencoder,
    fingerprint,
    load_autoencoder,
    parse_autoencoder_config,
    save_autoencoder,
    to_uint8,
    to_unit_range,
)

KINDS = ["patch_pca", "AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLMagvit", "AutoencoderKLLTXVideo"]


@pytest.mark.parametrize("name", KINDS)
def test_an_autoencoder_comes_back_from_its_folder(name, tmp_path, make_vae, make_video):
    vae, video = make_vae(name), make_video(5, 16, 16)
    if name != "patch_pca":
        vae.fit_latents(make_video(5, 16, 16, seed=1))
    save_autoencoder(vae, tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert loaded.config == vae.config
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded.encode(video), vae.encode(video))
    assert fingerprint(loaded) == fingerprint(vae)


def test_another_autoencoder_has_another_fingerprint(make_vae):
    vae = make_vae("patch_pca")
    before = fingerprint(vae)
    vae.rest.mean[0] += 1e-6
    assert fingerprint(vae) != before


def test_one_field_of_a_recipe_takes_any_kind():
    for raw in ({"kind": "patch_pca"}, {"kind": "causal_vae", "architecture": "causal-mini"}):
        config = parse_autoencoder_config(raw)
        assert config.kind == raw["kind"]
        assert build_autoencoder(config).config == config
        assert parse_autoencoder_config(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "no autoencoder at"),
        ("config.json", "[]", "kind None"),
        ("config.json", '{"kind": "vq"}', "kind 'vq'; known: patch_pca, image_vae, causal_vae"),
        ("config.json", '{"kind": "patch_pca", "stride": 2, "channels": 12}', "is damaged"),
        ("config.json", '{"kind": "causal_vae", "architecture": "causal-mini"}', "is damaged"),
        ("config.json", '{"_class_name": "AutoencoderOobleck"}', "of class 'AutoencoderOobleck'; known: AutoencoderKL"),
        ("config.json", '{"_class_name": "AutoencoderKLWan"}', "cannot be loaded"),
        ("model.safetensors", None, "is damaged"),
        ("model.safetensors", "rubbish", "is damaged"),
    ],
)
def test_a_folder_that_holds_no_whole_autoencoder_is_named_in_one_line(tmp_path, name, content, message, make_vae):
    save_autoencoder(make_vae("patch_pca"), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_autoencoder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan 2.2", "AutoencoderKLMochi"])
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_a_folder_of_diffusers_is_loaded_and_kept_as_ours(name, in_pipeline, tmp_path, make_vae, make_video):
    vae, video = make_vae(name), make_video(7 if name.endswith("Mochi") else 5, 16, 16)
    published = tmp_path / "published"
    if in_pipeline:
        published.mkdir()
        (published / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    vae.model.save_pretrained(published / "vae" if in_pipeline else published)
    assert not list(published.rglob("*.bin"))
    loaded = load_autoencoder(published)
    assert isinstance(loaded, ImageVAE if name == "AutoencoderKL" else CausalVAE)
    with torch.no_grad():
        latents = vae.latent_norm.denormalise(vae.encode(video))
        torch.testing.assert_close(loaded.latent_norm.denormalise(loaded.encode(video)), latents)
        save_autoencoder(loaded, tmp_path / "ours")
        assert torch.equal(load_autoencoder(tmp_path / "ours").encode(video), loaded.encode(video))


@pytest.mark.parametrize(
    ("name", "given", "shift", "scale"),
    [
        ("AutoencoderKL", {"scaling_factor": 0.25}, [0] * 4, [4] * 4),
        ("AutoencoderKL", {"scaling_factor": 0.5, "shift_factor": 0.1}, [0.1] * 4, [2] * 4),
        ("AutoencoderKLWan", {"latents_mean": [1, 2, 3, 4], "latents_std": [2, 3, 4, 5]}, [1, 2, 3, 4], [2, 3, 4, 5]),
    ],
)
def test_published_scaling_is_where_latents_start(name, given, shift, scale, tmp_path, make_vae):
    make_vae(name).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | given))
    norm = load_autoencoder(tmp_path).latent_norm
    torch.testing.assert_close(norm.shift, torch.tensor(shift, dtype=torch.float32))
    torch.testing.assert_close(norm.scale, torch.tensor(scale, dtype=torch.float32))


def test_scaling_that_lies_in_the_weights_is_where_latents_start(tmp_path, make_vae):
    vae = make_vae("AutoencoderKLLTXVideo")
    vae.model.latents_mean += 0.5
    vae.model.latents_std *= 3
    vae.model.save_pretrained(tmp_path)
    norm = load_autoencoder(tmp_path).latent_norm
    torch.testing.assert_close(norm.shift, torch.full((8,), 0.5))
    torch.testing.assert_close(norm.scale, torch.full((8,), 3.0))


def test_pickled_weights_are_not_read(tmp_path, make_vae):
    vae = make_vae("AutoencoderKL")
    vae.model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UserError, match="safetensors"):
        load_autoencoder(tmp_path)


def test_a_name_of_the_hub_that_cannot_be_had_is_said_in_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"no autoencoder 'nobody/nothing'.*cannot be reached.*download it and give its folder"
    ) as error:
        load_autoencoder("nobody/nothing")
    assert "\n" not in str(error.value)


def test_a_name_of_the_hub_goes_through_the_same_loader(tmp_path, monkeypatch, make_vae, make_video):
    """The hub is stood in for by a folder of that name, as its cache would be."""
    import diffusers

    vae, video = make_vae("AutoencoderKL"), make_video(1, 16, 16)
    vae.model.save_pretrained(tmp_path / "vae")
    cls = diffusers.AutoencoderKL
    load_config, from_pretrained = cls.load_config, cls.from_pretrained

    def local_config(name, **options):
        return load_config(str(tmp_path), **options)

    def local_model(name, **options):
        return from_pretrained(str(tmp_path), **options)

    monkeypatch.setattr(cls, "load_config", local_config)
    monkeypatch.setattr(cls, "from_pretrained", local_model)
    loaded = load_autoencoder("somebody/pipeline")
    with torch.no_grad():
        latents = vae.latent_norm.denormalise(vae.encode(video))
        torch.testing.assert_close(loaded.latent_norm.denormalise(loaded.encode(video)), latents)


def test_pixels_survive_the_unit_range():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(2, 3, 16, 16, 3)
    assert torch.equal(to_uint8(to_unit_range(frames)), frames)
