"""Prompts in, videos out: each video depends on its prompt, its seed and the size, and damage has a name."""

from __future__ import annotations

import doctest
import json
import shutil

import av
import numpy as np
import pytest
import torch

from kineograph.diffusion import text_to_video, windows
from kineograph.diffusion.request import MAX_FRAMES
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.diffusion.windows import Window
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.text import load_text_encoder
from kineograph.models.vae import Architecture, CausalVAEConfig, Tiling, build_autoencoder, save_autoencoder
from kineograph.store.checkpoints import CONFIG, seal
from tests.kineograph.tiny_checkpoint import FPS, FRAMES, STRIDE, make_checkpoint

PROMPTS = ["a red circle moving left", "a blue square moving up", "a cat"]
LONG = Bucket(16, 24, 50)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "train")


@pytest.fixture(scope="module")
def model(checkpoint):
    return TextToVideo.load(checkpoint)


@pytest.fixture(scope="module")
def videos(model):
    return model.generate(PROMPTS, seeds=[0, 1, 2])


def test_the_example_of_the_module_runs_as_it_stands(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "train").symlink_to(checkpoint.parents[1])
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(text_to_video) == (0, 5)
    with av.open("red.mp4") as made:
        assert sum(1 for _ in made.decode(video=0)) == FRAMES


def test_by_default_a_video_is_as_trained(videos):
    assert videos.shape == (3, FRAMES, 16, 24, 3)
    assert videos.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_prompts_are_encoded_as_the_captions_were(tmp_path, dtype):
    encoder = {"name": "minilm", "width": 384, "max_tokens": 5, "dtype": dtype}
    model = TextToVideo.load(make_checkpoint(tmp_path, text_encoder=encoder))
    (said,), (wanted,) = (
        e.encode(PROMPTS[:1]) for e in (model.text_encoder, load_text_encoder("minilm", 5, dtype=dtype))
    )
    np.testing.assert_array_equal(said, wanted)


def test_a_checkpoint_that_names_no_dtype_encodes_in_fp32(model):
    assert "dtype" not in model.config["text_encoder"]
    np.testing.assert_array_equal(model.text_encoder.encode(["a cat"])[0], load_text_encoder().encode(["a cat"])[0])


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


def test_a_prompt_and_a_negative_prompt_matter(model):
    circle, square = model.generate(PROMPTS[:2], seeds=[0, 0])
    assert (circle != square).any()
    asked = model.request(PROMPTS[:1], [0])
    away = next(model.stream(type(asked)(**{**vars(asked), "negative_prompt": "a cat"})))
    assert (away[0] != circle).any()


def test_a_prompt_is_encoded_once_for_all_its_seeds_and_as_it_is_alone(checkpoint, monkeypatch):
    model, asked = TextToVideo.load(checkpoint), []
    encoder = model.text_encoder
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda captions: asked.append(list(captions)) or encode(captions))
    for prompts in ([PROMPTS[0]] * 2, PROMPTS[:2], PROMPTS[1:]):
        model.generate(prompts, [0, 1], Bucket(8, 8, 1), steps=1)
    assert [caption for captions in asked for caption in captions] == PROMPTS
    states = model._text_states([PROMPTS[1], "", PROMPTS[0]])
    np.testing.assert_array_equal(states[0], encode([PROMPTS[1]])[0])
    assert states[1].shape == (0, 384)


def test_an_image_is_a_video_of_one_frame(model):
    assert model.generate(PROMPTS[:1], [0], Bucket(8, 12, 1)).shape == (1, 1, 8, 12, 3)


@pytest.mark.parametrize("bucket", [Bucket(9, 13, 2), Bucket(2, 2, 6), Bucket(30, 7, 16)])
def test_sizes_and_lengths_that_do_not_divide_are_made(model, bucket):
    shape = model.generate(PROMPTS[:1], [0], bucket).shape
    assert shape == (1, bucket.frames, bucket.height, bucket.width, 3)


def test_progress_counts_every_video(model):
    counted = []
    model.generate(PROMPTS, [0, 1, 2], Bucket(8, 8, 1), batch_size=2, on_progress=counted.append)
    assert counted == [2, 1]


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A checkpoint with a causal autoencoder of random weights, 4 frames of 4x4 pixels to a latent of 4 channels."""
    folder = make_checkpoint(tmp_path_factory.mktemp("wan") / "train")
    settings = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "is_residual": True}
    settings |= {"temperal_downsample": [True, True]}
    torch.manual_seed(0)
    architecture = Architecture(class_name="AutoencoderKLWan", settings=settings)
    save_autoencoder(build_autoencoder(CausalVAEConfig(architecture=architecture, chunk=1)), folder / "vae")
    seal(folder)
    return folder


class TestPiecesOfAWindow:
    @pytest.fixture
    def asked(self, model):
        """Two windows, with given frames in the middle of both."""
        frames = np.random.default_rng(0).integers(0, 256, (16, 16, 24, 3), dtype=np.uint8)
        known = {number: frames[number % 16] for number in (*range(5, 9), *range(21, 25))}
        return model.request(PROMPTS[:2], [0, 1], Bucket(16, 24, 29), known=known)

    def test_chunks_that_are_exact_are_decoded_one_by_one_to_the_same_bits(self, wan, asked, monkeypatch):
        model = TextToVideo.load(wan)
        pieces = list(model.stream(asked))
        assert len(model.windows(asked)) == 2
        assert max(piece.shape[1] for piece in pieces) == STRIDE
        monkeypatch.setattr(windows, "_goes_in_pieces", lambda vae: False)
        whole = list(model.stream(asked))
        assert len(whole) == 2
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), np.concatenate(whole, axis=1))

    def test_large_frames_are_coded_in_tiles_where_that_is_asked(self, wan, asked):
        model, seen = TextToVideo.load(wan, vae_tiling=Tiling(size=12, overlap=4)), set()
        for part in (model.vae.model.encoder, model.vae.model.decoder):
            part.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape[-2:])))
        video = np.concatenate(list(model.stream(asked)), axis=1)
        assert seen == {(12, 12), (3, 3)}  # pixels and latents
        assert video.shape == (2, 29, 16, 24, 3)
        for number, frame in asked.known.items():
            assert (video[:, number] == frame).all()

    def test_tiles_of_patches_that_are_coded_alone_change_nothing(self, model, checkpoint, asked):
        tiled = TextToVideo.load(checkpoint, vae_tiling=Tiling(size=12, overlap=4))
        videos = [np.concatenate(list(m.stream(asked)), axis=1).astype(int) for m in (model, tiled)]
        assert np.abs(videos[0] - videos[1]).max() <= 1  # rounding

    def test_tiles_that_are_no_whole_latents_are_refused_at_once(self, wan):
        with pytest.raises(UserError, match="size 18 and overlap 4 must be multiples of the autoencoder's 4 pixels"):
            TextToVideo.load(wan, vae_tiling=Tiling(size=18, overlap=4))


class TestLongVideos:
    def test_they_come_a_window_at_a_time(self, model):
        asked = model.request(PROMPTS[:2], [0, 1], LONG)
        pieces = [piece.shape for piece in model.stream(asked)]
        assert sum(shape[1] for shape in pieces) == LONG.frames
        assert len(pieces) == len(model.windows(asked))
        assert all(shape[0] == 2 and 0 < shape[1] <= FRAMES for shape in pieces)

    def test_windows_are_as_trained_and_share_half(self, model):
        windows = model.windows(model.request(PROMPTS[:1], [0], LONG))
        assert windows[:2] == [Window(0, 0, 5), Window(3, 1, 5, 1)]
        assert windows[-1].start + windows[-1].length == 1 - (1 - LONG.frames) // STRIDE

    def test_a_window_goes_on_from_the_one_before(self, model):
        """Other frames at the end of a window change what comes in the next."""
        begun = [dict.fromkeys(range(13, 17), np.full((16, 24, 3), shade, np.uint8)) for shade in (0, 255)]
        dark, light = (list(model.stream(model.request(PROMPTS[:1], [0], LONG, known=known)))[1] for known in begun)
        assert (dark != light).any(axis=(0, 2, 3, 4)).all()

    def test_an_overlap_that_does_not_fit_is_a_users_error(self, model):
        asked = model.request(PROMPTS[:1], [0], LONG)
        with pytest.raises(UserError, match="overlap by 1 to 4, not 5"):
            model.windows(type(asked)(**{**vars(asked), "overlap": 5}))


def test_known_frames_come_back_unchanged_and_lead_the_others(model):
    random = np.random.default_rng(0)
    bucket = Bucket(14, 22, FRAMES)
    known = {n: random.integers(0, 256, (14, 22, 3), dtype=np.uint8) for n in (0, 5, 6, 7, 8, 13, 14, 15, 16)}
    (video,) = next(model.stream(model.request(PROMPTS[:1], [0], bucket, known=known)))
    assert all(np.array_equal(video[n], frame) for n, frame in known.items())
    (plain,) = model.generate(PROMPTS[:1], [0], bucket)
    assert (plain != video).any(axis=(1, 2, 3)).all()


def test_every_step_shows_its_estimate(model):
    seen = []
    asked = model.request(PROMPTS[:2], [0, 1], LONG, steps=2)
    for _ in model.stream(asked, on_step=lambda *step: seen.append(step)):
        pass
    assert [step[:2] for step in seen] == [(w, s) for w in range(len(model.windows(asked))) for s in range(2)]
    assert all(clean.shape == (2, 4, 5, 4, 6) and clean.isfinite().all() for _, _, clean in seen)


def test_the_average_and_the_last_weights_can_both_be_loaded(checkpoint, model):
    last = TextToVideo.load(checkpoint, weights="model")
    for name, tensor in last.model.state_dict().items():
        assert torch.equal(tensor * 0.5, model.model.state_dict()[name])


def test_a_training_run_stands_for_its_newest_checkpoint(checkpoint):
    assert TextToVideo.load(checkpoint.parents[1]).path == checkpoint


@pytest.mark.parametrize(
    ("size", "seconds", "bucket"),
    [
        (None, None, Bucket(16, 24, FRAMES)),
        ("8x12", None, Bucket(8, 12, FRAMES)),
        ("8X13", 1.0, Bucket(8, 13, 8)),
        (None, 0.01, Bucket(16, 24, 1)),
        (None, 2.0, Bucket(16, 24, 16)),
    ],
)
def test_a_size_and_a_length_are_made_as_asked(model, size, seconds, bucket):
    assert model.bucket_for(size, seconds, FPS) == bucket


@pytest.mark.parametrize(
    ("size", "seconds", "message"),
    [
        ("big", None, "write height and width"),
        ("8x", None, "write height and width"),
        ("8x8x8", None, "write height and width"),
        ("0x8", None, "must be 2 or more"),
        ("-8x8", None, "must be 2 or more"),
        (None, 0.0, "above zero"),
        (None, -1.0, "above zero"),
        (None, float("nan"), "above zero"),
        (None, float("inf"), "above zero"),
        (None, 1e8, "at most 2073600 frames"),
        (None, 1e308, "at most 2073600 frames"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused(model, size, seconds, message):
    with pytest.raises(UserError, match=message):
        model.bucket_for(size, seconds, FPS)


def test_a_video_has_a_longest_length(model):
    longest = Bucket(16, 24, MAX_FRAMES)
    assert model.windows(model.request(["a cat"], [0], longest))[-1].start > 500_000
    with pytest.raises(UserError, match="1000000000 frames: a video has at most"):
        model.windows(model.request(["a cat"], [0], Bucket(16, 24, 10**9)))


def test_prompts_and_seeds_must_pair(model):
    with pytest.raises(ValueError, match="3 prompts and 2 seeds"):
        model.generate(PROMPTS, seeds=[0, 1])


def test_a_folder_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        TextToVideo.load(tmp_path / "nothing")


def test_an_empty_run_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no whole checkpoint"):
        TextToVideo.load(tmp_path)


class TestDamage:
    @pytest.fixture
    def folder(self, checkpoint, tmp_path):
        return shutil.copytree(checkpoint, tmp_path / checkpoint.name)

    def test_a_flipped_bit_is_a_users_error(self, folder):
        data = bytearray((folder / "ema.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "ema.safetensors").write_bytes(data)
        with pytest.raises(UserError, match=r"damaged: the bytes of ema\.safetensors"):
            TextToVideo.load(folder)

    @pytest.mark.parametrize("name", ["ema.safetensors", "vae/model.safetensors"])
    @pytest.mark.parametrize("data", [b"", b"not tensors"])
    def test_weights_that_were_sealed_broken_are_a_users_error(self, folder, name, data):
        (folder / name).write_bytes(data)
        seal(folder)
        with pytest.raises(UserError, match=r"cannot be loaded|is damaged"):
            TextToVideo.load(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"width": 3}}'])
    def test_a_config_that_was_sealed_broken_is_a_users_error(self, folder, text):
        (folder / CONFIG).write_text(text)
        seal(folder)
        with pytest.raises(UserError, match=r"config\.json"):
            TextToVideo.load(folder)

    def test_weights_of_another_model_are_a_users_error(self, folder):
        config = json.loads((folder / CONFIG).read_text())
        config["model"]["width"] = 64
        (folder / CONFIG).write_text(json.dumps(config))
        seal(folder)
        with pytest.raises(UserError, match="cannot be loaded"):
            TextToVideo.load(folder)
