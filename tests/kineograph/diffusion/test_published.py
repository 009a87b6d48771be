"""Published weights, imported, are a checkpoint like any other: the model's numbers, videos, and refusals that leave
nothing behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from kineograph.cli.main import kineo, main
from kineograph.diffusion import published
from kineograph.diffusion.flow import RectifiedFlow
from kineograph.diffusion.gaussian import Gaussian
from kineograph.diffusion.published import FORMATS, import_checkpoint
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.errors import DiskFullError, UserError
from kineograph.generation.render import MixedPrecision
from kineograph.media.geometry import Bucket
from kineograph.models.torchvision_shim import ensure_torchvision_importable
from kineograph.models.vae import CausalVAEConfig, PatchPCA, PatchPCAConfig, build_autoencoder, save_autoencoder
from kineograph.store.checkpoints import find_fault, read_config
from kineograph.store.commit import sha256_file
from tests.kineograph.models.test_importing import Payload
from tests.kineograph.models.text.conftest import t5_tokenizer

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
FILES = {"opensora-v1": "stdit_v1", "opensora-v3": "stdit_v3", "dit": "dit"}
HEADS = 4
PROMPTS = {"opensora-v1": "a red circle", "opensora-v3": "a red circle", "dit": "3"}
ASKED = {"opensora-v1": Bucket(64, 96, 4), "opensora-v3": Bucket(72, 112, 5), "dit": Bucket(64, 64, 1)}


class Parts(NamedTuple):
    """What stands beside the weights of a published model."""

    vae: str
    t5: str


def reference(format_name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs, and the weights in their published names."""
    tensors = load_file(REFERENCE / f"{FILES[format_name]}.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    return tensors, weights


def save_vae(folder: Path) -> str:
    """A tiny image autoencoder of stride 8, as the diffusers library writes it."""
    ensure_torchvision_importable()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
    return str(folder)


def save_t5(folder: Path) -> str:
    tokenizer = t5_tokenizer()
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"t5:{folder}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    return Parts(save_vae(root / "vae"), save_t5(root / "t5"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """NAME.safetensors and NAME.pth, as published, of each format."""
    root = tmp_path_factory.mktemp("weights")
    for name in FILES:
        _, state = reference(name)
        save_file(state, root / f"{name}.safetensors")
        torch.save(state, root / f"{name}.pth")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, parts, weights):
    root = tmp_path_factory.mktemp("runs")
    for name in FILES:
        encoder = None if name == "dit" else parts.t5
        import_checkpoint(weights / f"{name}.safetensors", name, root / name, parts.vae, encoder, HEADS)
    return {name: root / name for name in FILES}


@pytest.fixture(scope="module")
def models(runs):
    return {name: TextToVideo.load(run) for name, run in runs.items()}


def say_reference(name: str, model: Any, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the model says of the reference's input, by the call of every denoiser, and what the authors' says."""
    x, time = tensors["input.x"], tensors["input.timestep"]
    batch = len(x)
    none = torch.zeros(batch)
    if name == "dit":
        label = tensors["input.label"]
        text, x = torch.stack([label // 256, label % 256], dim=-1)[:, None].float(), x[:, :, None]
        mask, fps, size = torch.ones(batch, 1).bool(), none, torch.zeros(batch, 2)
        expected = tensors["output.plain"][:, :, None]
    else:
        text, mask = tensors["input.caption"][:, 0], tensors["input.caption_mask"].bool()
        fps = tensors.get("input.fps", none)
        size = torch.stack([tensors.get("input.height", none), tensors.get("input.width", none)], dim=1)
        expected = tensors["output.masked" if name == "opensora-v1" else "output.plain"]
    with torch.inference_mode():
        return model(x, time[:, None].expand(-1, x.shape[2]), text, mask, fps, size), expected


def space_timesteps(chain: int, steps: int) -> list[int]:
    """What IDDPM's code keeps of a chain for a number of steps: one section, a running sum of its fractional stride."""
    stride, place, kept = (chain - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        kept.append(round(place))
        place += stride
    return kept


def test_the_authors_timesteps():
    assert space_timesteps(1000, 250)[:4] == [0, 4, 8, 12]
    assert space_timesteps(1000, 100)[:3] == [0, 10, 20]
    assert space_timesteps(1000, 100)[-1] == 999


@pytest.mark.parametrize("name", FORMATS)
class TestCheckpoint:
    def test_it_is_whole_and_its_model_says_what_the_published_one_says(self, name, runs, models):
        tensors, _ = reference(name)
        assert find_fault(models[name].path) == ""
        for loaded in (models[name], TextToVideo.load(runs[name], weights="model")):
            said, expected = say_reference(name, loaded.model, tensors)
            torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)

    def test_a_pickle_of_the_same_weights_is_the_same_checkpoint(self, name, runs, parts, weights, tmp_path):
        encoder = None if name == "dit" else parts.t5
        made = import_checkpoint(weights / f"{name}.pth", name, tmp_path, parts.vae, encoder, HEADS)
        ours, theirs = Path(made["checkpoint"]), runs[name] / "checkpoints" / "step-00000000"
        for file in ("model.safetensors", "vae/model.safetensors"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes()
        written = read_config(ours)
        assert written.pop("imported") == {
            "format": name,
            "file": f"{name}.pth",
            "sha256": sha256_file(weights / f"{name}.pth"),
        }
        assert written == {key: value for key, value in read_config(theirs).items() if key != "imported"}

    def test_the_average_takes_no_second_place_on_the_disk(self, name, models):
        assert os.path.samefile(models[name].path / "model.safetensors", models[name].path / "ema.safetensors")

    def test_it_is_sampled_as_its_authors_do(self, name, models):
        sampling = models[name].sampling
        said = (sampling.steps, sampling.sampler.name, sampling.guidance.scale, sampling.guidance.channels)
        wanted = {
            "opensora-v1": (100, "ancestral", 7.0, 3),
            "opensora-v3": (30, "euler", 7.0, None),
            "dit": (250, "ancestral", 4.0, 3),
        }
        assert said == wanted[name]
        process = models[name].process
        if name == "opensora-v3":
            assert isinstance(process, RectifiedFlow)
            assert process.config.prediction == "reverse_velocity"
            assert process.shift(512 * 512, 4) == 2.0  # 1 at a frame of 512x512, and with the root of frames
        else:
            assert isinstance(process, Gaussian)
            assert process.output_factor == 2
            for steps in (sampling.steps, 7):
                assert process.path(steps, 64, 1).timesteps[:-1].tolist() == space_timesteps(1000, steps)[::-1]

    @pytest.mark.parametrize("frames", [1, 5])
    def test_its_model_is_told_what_the_authors_tell_it(self, name, models, parts, monkeypatch, frames):
        if name == "dit" and frames > 1:
            pytest.skip("a model of images")
        model, prompts = models[name], ["a red circle", "a blue square on the left"]
        told, forward = [], model.model.forward
        monkeypatch.setattr(model.model, "forward", lambda *given: told.append(given) or forward(*given))
        asked = Bucket(64, 64, frames)
        model.generate(["3", "5"] if name == "dit" else prompts, [0, 1], asked, fps=12.0, steps=2)
        _, _, text, mask, fps, _ = told[0]  # without prompts, then with
        assert fps.tolist() == [(120.0 if name == "opensora-v3" else 0.0) if frames == 1 else 12.0] * 4
        if name == "dit":
            assert mask.sum(1).tolist() == [0, 0, 1, 1]
            return
        # Open-Sora's null text is under the prompt's mask: as many of its tokens as the prompt has.
        assert torch.equal(mask[:2], mask[2:])
        tokens, null = mask[2:].sum(1).tolist(), model.model.null_text
        assert 0 < tokens[0] < tokens[1] <= len(null)
        for row, count in enumerate(tokens):
            assert torch.equal(text[row, :count], null[:count])

    def test_its_first_video_divides_into_latents(self, name, models):
        bucket = models[name].default_bucket
        models[name].vae.check_size(bucket.frames, bucket.height, bucket.width)
        # A DiT's positions are of one size: here 4x4 patches of 2x2 latents of 8x8 pixels.
        wanted = {
            "opensora-v1": Bucket(256, 256, 16),
            "opensora-v3": Bucket(240, 424, 15),
            "dit": Bucket(64, 64, 1),
        }
        assert bucket == wanted[name]

    def test_a_video_of_the_size_asked_is_made_and_made_again(self, name, models):
        prompt, asked = PROMPTS[name], ASKED[name]
        made, other = (models[name].generate([prompt], [seed], asked, steps=2) for seed in (0, 1))
        assert made.shape == (1, asked.frames, asked.height, asked.width, 3)
        assert made.dtype == np.uint8
        assert np.array_equal(made, models[name].generate([prompt], [0], asked, steps=2))
        assert (made != other).any()

    def test_the_prompt_matters(self, name, models):
        estimates = []
        for prompt in (PROMPTS[name], "7" if name == "dit" else "a blue square"):
            asked = models[name].request([prompt], [0], ASKED[name], steps=2)
            list(models[name].stream(asked, on_step=lambda _window, _step, clean: estimates.append(clean)))
        first, _, second, _ = estimates
        assert first.isfinite().all()
        assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["a golden retriever", "-1", "3.0", "100000"])
def test_a_prompt_that_is_no_class_is_a_users_error(models, prompt):
    with pytest.raises(UserError, match=r"a prompt is the number of a class, .* e\.g\. 207"):
        models["dit"].generate([prompt], [0], ASKED["dit"], steps=2)


def test_a_class_that_is_not_there_is_a_users_error_in_mixed_precision_too(models, monkeypatch):
    monkeypatch.setattr(models["dit"], "model", MixedPrecision(models["dit"].model))
    with pytest.raises(UserError, match="a prompt is the number of a class"):
        models["dit"].generate(["100000"], [0], ASKED["dit"], steps=2)


def test_a_video_autoencoder_makes_the_first_video_longer(weights, parts, tmp_path):
    """15 latents of Open-Sora 1.2 are 57 frames where a latent stands for 4."""
    wan = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    wan["temperal_downsample"] = [True, True, False]
    config = CausalVAEConfig.model_validate({"architecture": {"class_name": "AutoencoderKLWan", "settings": wan}})
    vae = build_autoencoder(config)
    assert vae.strides == (4, 8, 8)
    save_autoencoder(vae, tmp_path / "wan")
    import_checkpoint(
        weights / "opensora-v3.pth", "opensora-v3", tmp_path / "run", str(tmp_path / "wan"), parts.t5, HEADS
    )
    model = TextToVideo.load(tmp_path / "run")
    assert model.default_bucket == Bucket(240, 424, 57)
    model.vae.check_size(57, 240, 424)
    assert model.generate(["a cat"], [0], Bucket(16, 16, 5), steps=2).shape == (1, 5, 16, 16, 3)


def test_text_encoders_are_named_from_any_directory(weights, parts, tmp_path, monkeypatch):
    folder = Path(parts.t5.removeprefix("t5:"))
    monkeypatch.chdir(folder.parent)
    made = import_checkpoint(weights / "opensora-v3.pth", "opensora-v3", tmp_path, "vae", f"t5:{folder.name}", HEADS)
    assert made["text_encoder"] == {"name": parts.t5, "width": 32, "max_tokens": 10, "dtype": "float32"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("broken", ["save_file", "save_autoencoder", "seal"])
def test_a_full_disk_leaves_nothing(weights, parts, tmp_path, monkeypatch, broken, there):
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(published, broken, fail)
    out = tmp_path / "run"
    if there:
        out.mkdir()
    with pytest.raises((DiskFullError, OSError)):
        import_checkpoint(weights / "dit.pth", "dit", out, parts.vae, None, HEADS)
    assert [p.name for p in tmp_path.iterdir()] == (["run"] if there else [])
    assert not there or not any(out.iterdir())


def test_without_hard_links_the_average_is_a_copy(weights, parts, tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    made = Path(import_checkpoint(weights / "dit.pth", "dit", tmp_path, parts.vae, None, HEADS)["checkpoint"])
    assert find_fault(made) == ""
    assert (made / "ema.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


class TestCommand:
    """`kineo model import`."""

    def test_it_tells_what_it_wrote(self, weights, parts, tmp_path):
        asked = [str(weights / "opensora-v1.pth"), "--format", "opensora-v1", "--heads", "4", "--size", "8x64x96"]
        asked += ["--vae", parts.vae, "--text-encoder", parts.t5, "--out", str(tmp_path / "run")]
        done = CliRunner().invoke(kineo, ["model", "import", *asked, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        said = json.loads(done.stdout)
        folder = Path(said.pop("checkpoint"))
        assert said.pop("parameters") == 129_584
        assert said == read_config(folder)
        assert said["buckets"] == ["64x96x8"]
        assert find_fault(folder) == ""

    def test_without_json_it_tells_the_command_that_comes_next(self, weights, parts, tmp_path):
        asked = [str(weights / "dit.pth"), "--format", "dit", "--heads", "4", "--vae", parts.vae, "--out"]
        done = CliRunner().invoke(kineo, ["model", "import", *asked, str(tmp_path / "run")], catch_exceptions=False)
        first, second = done.stdout.splitlines()
        assert "step-00000000" in first
        assert "text encoder labels" in first
        assert f"kineo generate --checkpoint {tmp_path / 'run'} --prompt" in second


class Place(NamedTuple):
    """Where a refused import happens."""

    root: Path
    weights: Path
    parts: Parts

    @property
    def out(self) -> Path:
        return self.root / "run"


def _asked(place: Place, weights: str | Path, format_name: str, **options: Any) -> list[str]:
    """An import that would do, but for ``options``; None leaves one out."""
    said: dict[str, Any] = {
        "format": format_name,
        "out": place.out,
        "vae": place.parts.vae,
        "text-encoder": "labels" if format_name == "dit" else place.parts.t5,
        "heads": HEADS,
        **{key.replace("_", "-"): value for key, value in options.items()},
    }
    line = [str(place.weights / weights)]
    for key, value in said.items():
        line += [] if value is None else [f"--{key}", str(value)]
    return line


def _other_vae(place: Place) -> str:
    save_autoencoder(PatchPCA(PatchPCAConfig(channels=16, temporal_stride=1)), place.root / "vae16")
    return str(place.root / "vae16")


def _pickle_with_code(place: Place) -> Path:
    torch.save({"x": Payload(place.root / "ran")}, place.root / "evil.pth")
    return place.root / "evil.pth"


def _cut(place: Place) -> Path:
    whole = (place.weights / "dit.safetensors").read_bytes()
    (place.root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return place.root / "cut.safetensors"


def _file(place: Place) -> Path:
    (place.root / "file").write_text("mine")
    return place.root / "file"


REFUSED: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "format": (lambda p: _asked(p, "dit.pth", "sora"), "no format 'sora'; there is: opensora-v1, opensora-v3, dit"),
    "dit_as_v1": (lambda p: _asked(p, "dit.pth", "opensora-v1"), "not of a 3D convolution"),
    "v1_as_dit": (lambda p: _asked(p, "opensora-v1.pth", "dit"), "not of a 2D convolution"),
    "v1_as_v3": (lambda p: _asked(p, "opensora-v1.pth", "opensora-v3"), "no Open-Sora v3 checkpoint"),
    "v3_as_v1": (lambda p: _asked(p, "opensora-v3.pth", "opensora-v1"), "no Open-Sora v1 checkpoint"),
    "no_file": (lambda p: _asked(p, "none.pth", "dit"), "no checkpoint at"),
    "code": (lambda p: _asked(p, _pickle_with_code(p), "dit"), "cannot be read as tensors"),
    "cut": (lambda p: _asked(p, _cut(p), "dit"), "cannot be read as tensors"),
    "no_heads": (lambda p: _asked(p, "opensora-v1.pth", "opensora-v1", heads=None), "give --heads"),
    "no_heads_dit": (lambda p: _asked(p, "dit.pth", "dit", heads=None), "give --heads"),
    "heads": (lambda p: _asked(p, "opensora-v1.pth", "opensora-v1", heads=5), "heads"),
    "heads_dit": (lambda p: _asked(p, "dit.pth", "dit", heads=5), "heads"),
    "zero_heads": (lambda p: _asked(p, "dit.pth", "dit", heads=0), "heads"),
    "no_vae": (lambda p: _asked(p, "opensora-v3.pth", "opensora-v3", vae=None), "give one with --vae"),
    "other_vae": (lambda p: _asked(p, "dit.pth", "dit", vae=_other_vae(p)), "has 16 channels, the model 4"),
    "vae_nowhere": (lambda p: _asked(p, "dit.pth", "dit", vae=p.root / "none"), "no autoencoder at"),
    "words_to_dit": (lambda p: _asked(p, "dit.pth", "dit", text_encoder=p.parts.t5), "numbers of classes"),
    "labels": (lambda p: _asked(p, "opensora-v1.pth", "opensora-v1", text_encoder="labels"), "states of words"),
    "width": (lambda p: _asked(p, "opensora-v3.pth", "opensora-v3", text_encoder="minilm"), "384 channels"),
    "encoder": (lambda p: _asked(p, "opensora-v3.pth", "opensora-v3", text_encoder="bert"), "no text encoder 'bert'"),
    "sq_size_of_v1": (lambda p: _asked(p, "opensora-v1.pth", "opensora-v1", input_sq_size=512), "has no input_sq_size"),
    "sq_size_of_dit": (lambda p: _asked(p, "dit.pth", "dit", input_sq_size=512), "dit has no input_sq_size"),
    "size": (lambda p: _asked(p, "dit.pth", "dit", size="large"), "write frames, height and width"),
    "out_is_below_a_file": (lambda p: _asked(p, "dit.pth", "dit", out=_file(p) / "run"), "cannot be made"),
}


@pytest.mark.parametrize(("asked", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(tmp_path, weights, parts, capfd, asked, said, there):
    place = Place(tmp_path, weights, parts)
    if there:
        place.out.mkdir()
    arguments = asked(place)
    with pytest.raises(SystemExit) as ended:
        main(["model", "import", *arguments])
    *usage, error = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said in error
    assert not usage or usage[0].startswith("Usage:")
    assert place.out.exists() == there
    assert not there or not any(place.out.iterdir())
    assert not (tmp_path / "ran").exists()


def test_the_side_that_no_tensor_tells_of_is_taken(tmp_path, weights, parts, models):
    asked = _asked(Place(tmp_path, weights, parts), "opensora-v3.pth", "opensora-v3", input_sq_size=256)
    CliRunner().invoke(kineo, ["model", "import", *asked], catch_exceptions=False)
    loaded = TextToVideo.load(tmp_path / "run"), models["opensora-v3"]
    assert [one.model.config.grid_base for one in loaded] == [256, 512]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_out_that_is_taken_stays_as_it_is(tmp_path, weights, parts, capfd, kind):
    place = Place(tmp_path, weights, parts)
    kept = place.out if kind == "file" else place.out / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["model", "import", *_asked(place, "dit.pth", "dit")])
    (error,) = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "is taken: give a new or empty directory" in error
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]
    assert kept.read_text() == "mine"
