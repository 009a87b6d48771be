"""Prompts in, videos out: each video depends on its prompt, its seed and the size, and damage has a name."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kineograph.diffusion.flow import FlowConfig
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig
from kineograph.store.checkpoints import CONFIG, checkpoint_folder, seal

PROMPTS = ["a red circle moving left", "a blue square moving up", "a cat"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a model that was never trained but whose output is not zero."""
    folder = checkpoint_folder(tmp_path_factory.mktemp("train"), 7)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    vae_config, model_config = (
        PatchPCAConfig(channels=4),
        STDiTConfig(in_channels=4, text_width=384, width=32, depth=1, heads=2),
    )
    vae, model = PatchPCA(vae_config), STDiT(model_config)
    vae.fit([torch.rand(3, 9, 16, 16) for _ in range(4)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file({k: v * 0.5 for k, v in model.state_dict().items()}, folder / "ema.safetensors")
    save_file(vae.state_dict(), folder / "vae.safetensors")
    config = {
        "step": 7,
        "model": model_config.model_dump(),
        "vae": vae_config.model_dump(),
        "flow": FlowConfig(shift=2.0).model_dump(),
        "text_encoder": {"name": "minilm", "width": 384, "max_tokens": 64},
        "buckets": ["16x24x9", "16x24x1"],
        "fps": 8.0,
        "sampling": {"steps": 3, "guidance_scale": 3.0, "first_frame_first": True},
    }
    (folder / CONFIG).write_text(json.dumps(config))
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return TextToVideo.load(checkpoint)


@pytest.fixture(scope="module")
def videos(model):
    return model.generate(PROMPTS, seeds=[0, 1, 2])


def test_by_default_a_video_is_as_trained(videos):
    assert videos.shape == (3, 9, 16, 24, 3)
    assert videos.dtype == np.uint8


@pytest.mark.parametrize("place", [0, 2])
def test_a_video_is_the_same_alone_as_beside_others(model, videos, place):
    alone = model.generate([PROMPTS[place]], seeds=[place])[0]
    # Sums of other batch shapes may round differently: at most one level of 255.
    assert np.abs(alone.astype(int) - videos[place]).max() <= 1


def test_the_size_of_a_batch_does_not_matter(model, videos):
    in_ones = model.generate(PROMPTS, seeds=[0, 1, 2], batch_size=1)
    assert np.abs(in_ones.astype(int) - videos).max() <= 1


def test_another_seed_is_another_video(model):
    zero, one = model.generate([PROMPTS[0]] * 2, seeds=[0, 1])
    assert np.abs(zero.astype(int) - one).max() > 1  # more than rounding


def test_a_prompt_matters(model):
    circle, square = model.generate(PROMPTS[:2], seeds=[0, 0])
    assert (circle != square).any()


def test_an_image_is_a_video_of_one_frame(model):
    assert model.generate(PROMPTS[:1], [0], Bucket(8, 12, 1)).shape == (1, 1, 8, 12, 3)


def test_progress_counts_every_video(model):
    counted = []
    model.generate(PROMPTS, [0, 1, 2], Bucket(8, 8, 1), batch_size=2, on_progress=counted.append)
    assert counted == [2, 1]


def test_the_average_and_the_last_weights_can_both_be_loaded(checkpoint, model):
    last = TextToVideo.load(checkpoint, weights="model")
    assert not torch.equal(last.model.to_patches.weight, model.model.to_patches.weight)


def test_a_training_run_stands_for_its_newest_checkpoint(checkpoint):
    assert TextToVideo.load(checkpoint.parents[1]).path == checkpoint


@pytest.mark.parametrize(
    ("size", "seconds", "bucket"),
    [
        (None, None, Bucket(16, 24, 9)),
        ("8x12", None, Bucket(8, 12, 9)),
        ("8X12", 1.0, Bucket(8, 12, 9)),
        (None, 0.01, Bucket(16, 24, 1)),
        (None, 2.0, Bucket(16, 24, 17)),
    ],
)
def test_a_length_is_rounded_to_what_can_be_made(model, size, seconds, bucket):
    assert model.bucket_for(size, seconds, 8.0) == bucket


@pytest.mark.parametrize(
    ("size", "seconds", "message"),
    [
        ("big", None, "write height and width"),
        ("8x", None, "write height and width"),
        ("8x8x8", None, "write height and width"),
        ("0x8", None, "above zero"),
        ("-8x8", None, "above zero"),
        ("9x12", None, "multiples of 4"),
        (None, 0.0, "above zero"),
        (None, -1.0, "above zero"),
        (None, float("nan"), "above zero"),
        (None, float("inf"), "above zero"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused(model, size, seconds, message):
    with pytest.raises(UserError, match=message):
        model.bucket_for(size, seconds, 8.0)


def test_prompts_and_seeds_must_pair(model):
    with pytest.raises(ValueError, match="3 prompts and 2 seeds"):
        model.generate(PROMPTS, seeds=[0, 1])


def test_a_folder_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        TextToVideo.load(tmp_path / "nothing")


def test_an_empty_run_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no whole checkpoint"):
        TextToVideo.load(tmp_path)


def copy_of(checkpoint, tmp_path):
    import shutil

    return shutil.copytree(checkpoint, tmp_path / checkpoint.name)


def test_a_flipped_bit_is_a_users_error(checkpoint, tmp_path):
    folder = copy_of(checkpoint, tmp_path)
    data = bytearray((folder / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "ema.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged: the bytes of ema\.safetensors"):
        TextToVideo.load(folder)


@pytest.mark.parametrize("name", ["ema.safetensors", "vae.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not tensors"])
def test_weights_that_were_sealed_broken_are_a_users_error(checkpoint, tmp_path, name, data):
    folder = copy_of(checkpoint, tmp_path)
    (folder / name).write_bytes(data)
    seal(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        TextToVideo.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"width": 3}}'])
def test_a_config_that_was_sealed_broken_is_a_users_error(checkpoint, tmp_path, text):
    folder = copy_of(checkpoint, tmp_path)
    (folder / CONFIG).write_text(text)
    seal(folder)
    with pytest.raises(UserError, match=r"config\.json"):
        TextToVideo.load(folder)


def test_weights_of_another_model_are_a_users_error(checkpoint, tmp_path):
    folder = copy_of(checkpoint, tmp_path)
    config = json.loads((folder / CONFIG).read_text())
    config["model"]["width"] = 64
    (folder / CONFIG).write_text(json.dumps(config))
    seal(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        TextToVideo.load(folder)
