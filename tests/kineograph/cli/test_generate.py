"""`kineo generate`: files that tell how they were made, and what cannot be made told in one line."""

from __future__ import annotations

import json
import shutil
from typing import Any, get_args

import av
import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kineograph.cli.generate import generate
from kineograph.diffusion.samplers import FixedVariance, SamplerConfig, SamplerName
from kineograph.errors import UserError
from kineograph.generation.asked import Asked
from kineograph.generation.settings import Settings, read_settings
from kineograph.media.encode import write_mp4, write_png
from kineograph.models.vae import Tiling
from kineograph.store.checkpoints import CONFIG, seal
from tests.kineograph.cli.test_main import HEAVY, imported_by
from tests.kineograph.tiny_checkpoint import FPS, FRAMES, make_checkpoint

HEIGHT, WIDTH = 16, 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with a picture and a video of three seconds."""
    folder = tmp_path_factory.mktemp("media")
    video = np.random.default_rng(0).integers(0, 256, (24, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_png(folder / "a.png", video[0])
    write_mp4(folder / "a.mp4", video, FPS)
    return folder


def kineo(*arguments: Any) -> str:
    """What the command says."""
    done = CliRunner().invoke(generate, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return done.stdout


def make(checkpoint, *arguments: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(
        kineo("--checkpoint", checkpoint, "--prompt", "a red circle", "--steps", 2, "--json", *arguments)
    )
    return facts


def frames_in(path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_help_imports_nothing_heavy():
    assert imported_by("generate", "--help").isdisjoint(HEAVY)


def test_every_option_is_known_to_what_takes_them():
    options = {option.name: option for option in generate.params}
    assert set(options) == set(Asked.model_fields) | {"as_json"}
    assert set(options["sampler"].type.choices) == set(get_args(SamplerName))
    assert set(options["variance"].type.choices) == set(get_args(FixedVariance))
    assert set(options["spacing"].type.choices) == set(get_args(SamplerConfig.model_fields["spacing"].annotation))


class TestOneVideo:
    def test_the_file_is_as_asked_and_tells_how_it_was_made(self, checkpoint, tmp_path):
        out = tmp_path / "red circle.mp4"
        asked = ["--size", "24x40", "--seconds", 1.6, "--sampler", "ddim", "--eta", 0.5, "--cfg", 2, "--seed", 3]
        facts = make(checkpoint, "--out", out, *asked, "--negative-prompt", "blur", "--weights", "model")
        with av.open(str(out)) as container:
            stream = container.streams.video[0]
            frames = [(frame.height, frame.width) for frame in container.decode(stream)]
            assert (stream.codec_context.name, stream.average_rate, frames) == ("h264", FPS, [(24, 40)] * 13)
            told = json.loads(container.metadata["comment"])
        assert told.items() <= facts.items()
        settings = Settings.model_validate(told)
        assert (settings.prompt, settings.negative_prompt, settings.seed) == ("a red circle", "blur", 3)
        assert (settings.sampling.sampler.name, settings.sampling.sampler.eta) == ("ddim", 0.5)
        assert (settings.sampling.guidance.scale, settings.weights, settings.checkpoint.step) == (2.0, "model", 7)
        assert settings.checkpoint.digest == json.loads((checkpoint / "digests.json").read_text())["model.safetensors"]
        with Image.open(facts["contact_sheet"]) as sheet:
            assert (sheet.format, facts["contact_sheet"]) == ("PNG", str(out.with_suffix(".png")))

    def test_it_says_what_was_made(self, checkpoint, tmp_path):
        said = kineo("--checkpoint", checkpoint, "--prompt", "", "--frames", 1, "--out", tmp_path / "a.mp4")
        assert f"1 frames of {HEIGHT}x{WIDTH} at 8 fps" in said

    def test_the_autoencoder_codes_in_tiles_as_asked_and_again_the_same(self, checkpoint, tmp_path):
        facts = make(checkpoint, "--out", tmp_path / "a.mp4", "--vae-tiling", 16, "--preview")
        assert facts["vae_tiling"] == {"size": 16, "overlap": 4}
        kineo("--like", tmp_path / "a.mp4", "--out", tmp_path / "b.mp4")
        assert read_settings(tmp_path / "b.mp4").vae_tiling == Tiling(size=16, overlap=4)
        assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()

    def test_a_preview_shows_the_work(self, checkpoint, tmp_path):
        make(checkpoint, "--out", tmp_path / "a.mp4", "--preview", 2)
        with Image.open(tmp_path / "a.preview.png") as preview:
            assert preview.format == "PNG"

    @pytest.mark.parametrize(
        ("given", "frames"),
        [
            (["--image", "a.png", "--seconds", 3], 24),
            (["--image", "a.png", "--last-image", "a.png", "--frames", 10], 10),
            (["--video", "a.mp4"], 24 + FRAMES),
            (["--video-end", "a.mp4", "--seconds", 4], 32),
            (["--fill", "a.mp4", "0.5:1.4"], 24),
            (["--image", "a.png", "--loop", "--frames", 9], 9),
        ],
    )
    def test_the_length_is_that_of_the_whole_file(self, checkpoint, media, tmp_path, monkeypatch, given, frames):
        monkeypatch.chdir(media)
        out = tmp_path / "a.mp4"
        assert make(checkpoint, "--out", out, *given)["frames"] == frames == frames_in(out)


class TestLike:
    def test_the_same_settings_give_the_same_bytes(self, checkpoint, media, tmp_path):
        shutil.copy(media / "a.mp4", tmp_path / "a.mp4")
        asked = ["--video", tmp_path / "a.mp4", "--seconds", 4, "--fps", 12, "--size", "20x20", "--spacing", "karras"]
        make(checkpoint, "--out", tmp_path / "one.mp4", *asked, "--cfg-interval", "100,900", "--overlap", 5)
        kineo("--like", tmp_path / "one.mp4", "--out", tmp_path / "two.mp4")
        assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()

    def test_a_stretch_that_was_made_again_is_made_again_once_more(self, checkpoint, media, tmp_path, monkeypatch):
        monkeypatch.chdir(media)  # files that were given are found in the current folder too
        make(checkpoint, "--out", tmp_path / "one.mp4", "--fill", "a.mp4", "0.7:1.3")
        kineo("--like", tmp_path / "one.mp4", "--out", tmp_path / "two.mp4")
        assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()

    def test_what_is_said_beside_it_holds(self, checkpoint, tmp_path):
        make(checkpoint, "--out", tmp_path / "one.mp4", "--seed", 1, "--sampler", "heun")
        facts = json.loads(
            kineo("--like", tmp_path / "one.mp4", "--out", tmp_path / "two.mp4", "--seed", 0, "--fps", 16, "--json")
        )
        one, two = read_settings(tmp_path / "one.mp4"), read_settings(tmp_path / "two.mp4")
        changed = {"seed": 0, "fps": 16.0, "frames": 2 * one.frames}
        assert two == one.model_copy(update=changed)
        assert facts["seconds"] == FRAMES / FPS

    def test_what_is_no_longer_there_is_told(self, checkpoint, media, tmp_path):
        run = shutil.copytree(checkpoint.parents[1], tmp_path / "train")
        given = shutil.copy(media / "a.png", tmp_path / "b.png")
        make(run, "--out", tmp_path / "one.mp4", "--image", given)
        again = ["--like", tmp_path / "one.mp4", "--out", tmp_path / "two.mp4"]
        write_png(given, np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(UserError, match=r"b\.png, .* is another file by now"):
            kineo(*again)
        given.unlink()
        with pytest.raises(UserError, match=r"b\.png, .* is not here"):
            kineo(*again)
        folder = run / "checkpoints" / checkpoint.name
        shutil.copy(folder / "ema.safetensors", folder / "model.safetensors")
        seal(folder)
        with pytest.raises(UserError, match="not the one that made"):
            kineo(*again)
        kineo(*again, "--checkpoint", run, "--image", media / "a.png")

    def test_a_video_from_elsewhere_is_refused(self, media, tmp_path):
        with pytest.raises(UserError, match="does not say how it was made"):
            kineo("--like", media / "a.mp4", "--out", tmp_path / "b.mp4")
        with pytest.raises(UserError, match="cannot be read"):
            kineo("--like", tmp_path / "none.mp4", "--out", tmp_path / "b.mp4")

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ({"frames": 10**9}, "does not say how it was made"),
            ({"fps": 1e300}, "does not say how it was made"),
            ({"window": 0}, "does not say how it was made"),
            ({"frames": 2_000_000, "fps": 1e-305}, "at most 2073600 frames"),
        ],
    )
    def test_a_length_that_nobody_can_make_is_refused(self, checkpoint, tmp_path, told, message):
        make(checkpoint, "--out", tmp_path / "one.mp4", "--frames", 1)
        comment = read_settings(tmp_path / "one.mp4").model_dump(mode="json") | told
        write_mp4(tmp_path / "two.mp4", np.zeros((1, 8, 8, 3), np.uint8), 8, metadata={"comment": json.dumps(comment)})
        with pytest.raises(UserError, match=message) as caught:
            kineo("--like", tmp_path / "two.mp4", "--out", tmp_path / "three.mp4", "--fps", 8)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "three.mp4").exists()


@pytest.fixture(scope="module")
def several(checkpoint, tmp_path_factory):
    """A folder of six videos of three prompts, how it was asked for, and what the command told."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "prompts.csv").write_text("prompt,seed,negative_prompt\na cat,,\na dog,5,blur\n")
    arguments = ["--prompts", folder / "prompts.csv", "--out", folder / "out", "--videos", 2, "--batch", 3]
    return folder / "out", arguments, make(checkpoint, *arguments)


class TestSeveral:
    def test_a_folder_holds_them_all_with_a_list_and_a_sheet(self, several):
        out, _, facts = several
        names = [
            *(f"000-a-red-circle-{seed}.mp4" for seed in (0, 1)),
            *(f"001-a-cat-{seed}.mp4" for seed in (0, 1)),
            *(f"002-a-dog-{seed}.mp4" for seed in (5, 6)),
        ]
        assert sorted(path.name for path in out.iterdir()) == [*names, "contact-sheet.png", "prompts.jsonl"]
        rows = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
        assert rows == facts["videos"]
        assert [row["video"] for row in rows] == names
        assert [row["negative_prompt"] for row in rows] == ["", "", "", "", "blur", "blur"]
        assert (facts["made"], facts["skipped"]) == (6, 0)
        assert all(read_settings(out / row["video"]).seed == row["seed"] for row in rows)

    def test_what_is_there_is_kept(self, several, checkpoint):
        out, arguments, _ = several
        (out / "001-a-cat-0.mp4").unlink()
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
        facts = make(checkpoint, *arguments)
        after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
        assert (facts["made"], facts["skipped"]) == (1, 5)
        assert before.items() <= after.items()
        assert len(after) == 6

    def test_other_settings_make_them_anew(self, checkpoint, tmp_path):
        make(checkpoint, "--out", tmp_path, "--frames", 1)
        assert make(checkpoint, "--out", tmp_path, "--frames", 1, "--cfg", 1)["made"] == 1
        assert make(checkpoint, "--out", tmp_path, "--frames", 1, "--cfg", 1)["made"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.avi"], r"ends in \.mp4"),
        (["--out", "x.mp4", "--videos", 2], "go to a folder"),
        (["--size", "33"], "write height and width"),
        (["--size", "1x8"], "must be 2 to"),
        (["--fps", "-1"], "above zero"),
        (["--seconds", "nan"], "above zero"),
        (["--seconds", "1e8"], "at most 2073600 frames"),
        (["--seconds", "1e307", "--fps", 1000], "at most 2073600 frames"),
        (["--frames", 10**30], "--frames 1.*: a video has at most"),
        (["--seconds", 1, "--frames", 8], "--seconds and --frames exclude"),
        (["--seeds", "1,2", "--seed", 3], "exclude each other"),
        (["--image", "a.png", "--video", "a.mp4"], "exclude each other"),
        (["--loop", "--last-image", "a.png"], "exclude each other"),
        (["--device", "abacus"], "--device"),
        (["--sampler", "heun", "--eta", 0.5], "eta is of the sampler ddim"),
        (["--timesteps", "0.2,0.9"], "must fall"),
        (["--cfg", -1], "guidance.scale"),
        (["--vae-tiling", "8:8"], "write the pixels of a tile's side"),
        (["--vae-tiling", "large"], "write the pixels of a tile's side"),
        (["--vae-tiling", "10:4"], "must be multiples of the autoencoder's 4 pixels"),
        (["--cfg-interval", "800,100"], "a lower and an upper"),
        (["--seconds", 4, "--overlap", 30], "overlap"),
        (["--image", "a.mp4"], "is a video"),
        (["--image", "playlist.mp4"], "--image .* gives no frames"),
        (["--video", "none.mp4"], "--video .* gives no frames"),
        (["--video", "a.mp4", "--seconds", 2], "nothing is left to make"),
        (["--fill", "a.mp4", "2:1"], "must end after it begins"),
        (["--fill", "a.mp4", "one"], "1.5:3"),
        (["--fill", "a.mp4", "7:9"], "must lie in its 3 s"),
        (["--fill", "a.mp4", "0:9"], "is all of it"),
        (["--prompts", "none.txt"], "cannot be read"),
        (["--checkpoint", "nowhere"], "no checkpoint at"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line_and_leaves_nothing(
    checkpoint, media, tmp_path, monkeypatch, arguments, message
):
    for name in ("a.png", "a.mp4"):
        (tmp_path / name).symlink_to(media / name)
    (tmp_path / "playlist.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    base = ["--checkpoint", checkpoint, "--prompt", "a cat", "--out", "x.mp4"]
    with pytest.raises(UserError, match=message) as caught:
        kineo(*base, *arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_without_a_prompt_or_a_checkpoint_nothing_starts(checkpoint, tmp_path):
    with pytest.raises(UserError, match="--prompt"):
        kineo("--checkpoint", checkpoint, "--out", tmp_path / "a.mp4")
    with pytest.raises(UserError, match="--checkpoint"):
        kineo("--prompt", "a cat", "--out", tmp_path / "a.mp4")


def test_an_interrupted_command_leaves_no_video(checkpoint, tmp_path, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("kineograph.progress.Progress.update", interrupted)
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        make(checkpoint, "--out", tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_single_frames_says_so(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "train", buckets=["16x24x1"])
    with pytest.raises(UserError, match="single frames"):
        make(checkpoint, "--out", tmp_path / "a.mp4", "--frames", 9)


def test_what_a_file_says_cannot_steer_a_terminal(checkpoint, tmp_path):
    make(checkpoint, "--out", tmp_path / "one.mp4", "--frames", 1)
    told = read_settings(tmp_path / "one.mp4").model_dump(mode="json")
    told["checkpoint"]["path"] = "\x1b[2Jnowhere\n"
    write_mp4(tmp_path / "two.mp4", np.zeros((1, 8, 8, 3), np.uint8), 8, metadata={"comment": json.dumps(told)})
    with pytest.raises(UserError, match=r"no checkpoint at \?\[2Jnowhere\?"):
        kineo("--like", tmp_path / "two.mp4", "--out", tmp_path / "three.mp4")


def test_a_checkpoint_that_is_no_generator_is_told(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({key: config[key] for key in ("kind", "step")}))
    seal(folder)
    with pytest.raises(UserError, match="is not of a generator"):
        make(folder, "--out", tmp_path / "a.mp4")
