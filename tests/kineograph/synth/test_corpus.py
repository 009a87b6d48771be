"""A corpus is the same bytes for the same seed, and its truth is what a decoder finds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from kineograph.errors import UserError
from kineograph.synth.corpus import BadShares, SynthConfig, write_corpus
from kineograph.synth.oracle import expected, grade

CONFIG = SynthConfig(
    videos=40,
    seed=11,
    max_side=176,
    max_seconds=6,
    images=0.1,
    bad=BadShares(
        exact_duplicate=0.05,
        reencoded_duplicate=0.1,
        static=0.05,
        black=0.05,
        letterbox=0.05,
        blurred=0.05,
        text=0.05,
        flashing=0.05,
        truncated=0.05,
        foreign=0.125,
    ),
)
# What the pipeline passes to the demuxer; a playlist must not get past it.
WHITELIST = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "raw"
    write_corpus(path, CONFIG, workers=2, progress=False)
    return path


@pytest.fixture(scope="module")
def files(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "truth.json").read_text())["files"]


def of_kind(files: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [file for file in files if file["kind"] == kind]


def decode(path: Path) -> np.ndarray:
    with av.open(str(path), options=WHITELIST) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "again", CONFIG, workers=1, progress=False)
    assert contents(tmp_path / "again") == contents(folder)


def test_another_seed_gives_another_corpus(folder: Path, tmp_path: Path) -> None:
    small = SynthConfig(videos=2, max_side=176, max_seconds=2, images=0)
    write_corpus(tmp_path / "a", small, progress=False)
    write_corpus(tmp_path / "b", small.model_copy(update={"seed": 1}), progress=False)
    assert contents(tmp_path / "a")["source_00000.mp4"] != contents(tmp_path / "b")["source_00000.mp4"]


def test_every_kind_is_there_in_its_share(files: list[dict[str, Any]]) -> None:
    bad = dict.fromkeys(BadShares.model_fields, 2) | {"foreign": 5, "reencoded_duplicate": 4, "dissolve": 0}
    assert Counter(file["kind"] for file in files) == Counter(bad | {"image": 4, "video": 11})
    assert {file["detail"] for file in of_kind(files, "foreign")} == {
        "text",
        "ffconcat",
        "hls",
        "empty",
        "zip",
    }
    assert {file["detail"] for file in of_kind(files, "truncated")} == {"no_index", "partial"}
    copies = of_kind(files, "reencoded_duplicate")
    assert {file["detail"] for file in copies} == {"reencoded", "bars", "shifted", "bars+shifted"}


def test_a_decoder_finds_what_the_truth_says(folder: Path, files: list[dict[str, Any]]) -> None:
    for file in files:
        if not file["valid"] or file["kind"] == "image":
            continue
        with av.open(str(folder / file["path"])) as container:
            stream = container.streams.video[0]
            assert float(stream.average_rate) == pytest.approx(file["fps"])
            assert (stream.width, stream.height) == (file["width"], file["height"])
            assert sum(1 for _ in container.decode(stream)) == file["frames"]
        assert file["seconds"] == pytest.approx(file["frames"] / file["fps"], abs=1e-5)
        edges = [(scene["start_frame"], scene["end_frame"]) for scene in file["scenes"]]
        assert [edge for pair in edges for edge in pair] == [
            0,
            *(cut for cut in file["cuts"] for _ in (0, 1)),
            file["frames"],
        ]


def test_the_picture_jumps_at_cuts_and_nowhere_else(folder: Path, files: list[dict[str, Any]]) -> None:
    for file in of_kind(files, "video") + of_kind(files, "reencoded_duplicate"):
        x, y, width, height = file["active"]
        video = decode(folder / file["path"])[:, y : y + height, x : x + width].astype(np.float32)
        middle = np.median(video.mean(axis=-1).reshape(len(video), -1), axis=1)
        jumps = np.flatnonzero(np.abs(np.diff(middle)) > 25) + 1
        assert jumps.tolist() == file["cuts"]


def test_captions_describe_the_scenes_and_lie_beside_the_files(folder: Path, files: list[dict[str, Any]]) -> None:
    for file in files:
        text, timed = (folder / Path(file["path"]).with_suffix(suffix) for suffix in (".txt", ".json"))
        for scene in file["scenes"]:
            told = expected(scene["caption"]) or []
            assert [(o.colour, o.shape, o.direction) for o in told] == [
                (o["colour"], o["shape"], o["direction"]) for o in scene["objects"]
            ]
        if len(file["scenes"]) > 1:
            spans = json.loads(timed.read_text())["captions"]
            assert spans == [{k: s[k] for k in ("start_s", "end_s", "caption")} for s in file["scenes"]]
            assert not text.exists()
        elif file["scenes"] and file["scenes"][0]["kind"] != "black":
            assert text.read_text() == file["scenes"][0]["caption"] + "\n"


def test_the_oracle_agrees_with_the_captions(folder: Path, files: list[dict[str, Any]]) -> None:
    for file in of_kind(files, "video"):
        if 5 * file["width"] > 7 * file["height"] or 5 * file["height"] > 7 * file["width"]:
            continue  # a long frame may hide the object's way at this size
        video = decode(folder / file["path"])
        for scene in file["scenes"]:
            shot = video[scene["start_frame"] : scene["end_frame"]]
            step = max(1, round(file["fps"] / 4))
            assert all(grade(shot[::step], scene["caption"]).values()), file["path"]


def test_images_are_stills_with_a_caption_without_motion(folder: Path, files: list[dict[str, Any]]) -> None:
    assert {Path(file["path"]).suffix for file in of_kind(files, "image")} == {".png", ".jpg"}
    for file in of_kind(files, "image"):
        with Image.open(folder / file["path"]) as image:
            assert image.size == (file["width"], file["height"])
            pixels = np.asarray(image.convert("RGB"))
        assert grade(pixels[None], file["scenes"][0]["caption"])["colour"]
        assert "moving" not in file["scenes"][0]["caption"]


def test_duplicates_name_their_original(folder: Path, files: list[dict[str, Any]]) -> None:
    by_path = {file["path"]: file for file in files}
    for file in of_kind(files, "exact_duplicate"):
        original = by_path[file["duplicate_of"]]
        assert (folder / file["path"]).read_bytes() == (folder / original["path"]).read_bytes()
        assert file["offset_s"] == 0


def test_a_copy_shows_at_each_moment_what_its_original_shows(folder: Path, files: list[dict[str, Any]]) -> None:
    by_path = {file["path"]: file for file in files}
    for file in of_kind(files, "reencoded_duplicate"):
        original = by_path[file["duplicate_of"]]
        assert (file["fps"], file["width"]) != (original["fps"], original["width"])
        x, y, width, height = file["active"]
        assert ((x, y) != (0, 0)) == ("bars" in file["detail"])
        mine, theirs = decode(folder / file["path"]), decode(folder / original["path"])
        for index in range(0, len(mine), 5):
            at = (index / file["fps"] + file["offset_s"]) * original["fps"]
            near = [theirs[min(max(0, int(at + step)), len(theirs) - 1)] for step in (-1, 0, 1)]
            picture = cv2.resize(mine[index, y : y + height, x : x + width], (32, 32), interpolation=cv2.INTER_AREA)
            apart = [np.abs(cv2.resize(f, (32, 32), interpolation=cv2.INTER_AREA).astype(int) - picture) for f in near]
            assert min(difference.mean() for difference in apart) < 6


def test_a_shifted_copy_keeps_most_of_its_original_and_tells_of_what_it_shows(files: list[dict[str, Any]]) -> None:
    by_path = {file["path"]: file for file in files}
    for file in of_kind(files, "reencoded_duplicate"):
        original, offset = by_path[file["duplicate_of"]], file["offset_s"]
        if "shifted" not in file["detail"]:
            assert offset == 0
            continue
        assert 0.3 <= offset <= 2.5
        frame = 1 / min(file["fps"], original["fps"])
        assert file["seconds"] >= max(1.0, 0.6 * original["seconds"]) - frame
        left = [scene for scene in original["scenes"] if scene["end_s"] > offset + frame]
        assert [s["caption"] for s in file["scenes"]] == [s["caption"] for s in left]
        for mine, theirs in zip(file["scenes"], left, strict=True):
            assert mine["start_s"] == pytest.approx(max(0, theirs["start_s"] - offset), abs=frame)


def test_flashes_are_four_a_second_or_more_and_never_black(folder: Path, files: list[dict[str, Any]]) -> None:
    for file in of_kind(files, "flashing"):
        video = decode(folder / file["path"]).mean(axis=(1, 2, 3)) / 255
        assert [scene["flashes_per_s"] > 0 for scene in file["scenes"]].count(True) == 1
        for scene in file["scenes"]:
            jumps = np.abs(np.diff(video[scene["start_frame"] : scene["end_frame"]])) > 0.2
            if scene["kind"] == "flashing":
                assert scene["flashes_per_s"] >= 4
                seconds = scene["end_s"] - scene["start_s"]
                assert jumps.sum() / 2 >= scene["flashes_per_s"] * (seconds - 0.4) - 1.5
            else:
                assert not jumps.any()
        assert video.min() > 0.12


def test_a_dissolve_has_no_cut_and_the_truth_tells_where_it_is(tmp_path: Path) -> None:
    bad = BadShares(**{**dict.fromkeys(BadShares.model_fields, 0.0), "dissolve": 1.0})
    config = SynthConfig(videos=3, max_side=176, max_seconds=5, max_scenes=2, images=0, bad=bad)
    write_corpus(tmp_path / "raw", config, progress=False)
    for file in json.loads((tmp_path / "raw" / "truth.json").read_text())["files"]:
        (fade,) = file["transitions"]
        assert (len(file["scenes"]), file["cuts"]) == (2, [])
        assert fade["end_frame"] == file["scenes"][1]["start_frame"]
        levels = np.median(decode(tmp_path / "raw" / file["path"]).astype(float), axis=(1, 2)).mean(axis=1)
        steps = np.abs(np.diff(levels))
        assert abs(levels[-1] - levels[0]) > 60
        changing = np.flatnonzero(steps > 3) + 1
        assert fade["start_frame"] <= changing.min()
        assert changing.max() <= fade["end_frame"]
        assert steps.max() < 40


def test_a_scene_repeats_when_the_truth_says_so(folder: Path, files: list[dict[str, Any]]) -> None:
    looked = 0
    for file in of_kind(files, "video"):
        scene = file["scenes"][0]
        later = scene["start_s"] + (scene["repeats_s"] or 99.0)
        if later < scene["end_s"] - 0.2:
            video = decode(folder / file["path"]).astype(int)
            again = video[round(later * file["fps"])]
            half = video[round(later / 2 * file["fps"])]
            assert np.abs(again - video[0]).mean() < np.abs(half - video[0]).mean() / 3
            looked += 1
    assert looked


def test_spoilt_stretches_are_spoilt(folder: Path, files: list[dict[str, Any]]) -> None:
    def stretches(kind: str) -> list[np.ndarray]:
        return [
            decode(folder / file["path"])[scene["start_frame"] : scene["end_frame"]]
            for file in of_kind(files, kind)
            for scene in file["scenes"]
            if scene["kind"] == kind
        ]

    assert all(video.max() < 16 for video in stretches("black"))
    assert all(np.abs(np.diff(video.astype(int), axis=0)).mean() < 1.5 for video in stretches("static"))

    def sharpest(video: np.ndarray) -> int:
        return int(np.abs(np.diff(video.astype(int), axis=2)).max())

    assert all(sharpest(video) < 60 < sharpest(text) for video in stretches("blurred") for text in stretches("text"))
    for file in of_kind(files, "letterbox"):
        x, y, width, height = file["active"]
        video = decode(folder / file["path"])
        outside = np.ones(video.shape[1:3], bool)
        outside[y : y + height, x : x + width] = False
        assert video[:, outside].mean() < 8
        assert video[:, ~outside].min(axis=-1).mean() > 30


def test_what_is_not_valid_does_not_decode(folder: Path, files: list[dict[str, Any]]) -> None:
    for file in files:
        if file["valid"] or file["detail"] == "partial":
            continue
        with pytest.raises((av.FFmpegError, IndexError)):
            decode(folder / file["path"])


def test_a_file_cut_behind_its_index_opens_and_lacks_frames(folder: Path, files: list[dict[str, Any]]) -> None:
    file = next(file for file in files if file["detail"] == "partial")
    found = 0
    with av.open(str(folder / file["path"]), options=WHITELIST) as container:
        promised = container.streams.video[0].frames
        try:
            for _ in container.decode(video=0):
                found += 1
        except av.FFmpegError:
            pass
    assert 0 < found < promised


def test_a_playlist_would_read_another_file_but_for_the_list_of_formats(
    folder: Path, files: list[dict[str, Any]]
) -> None:
    file = next(file for file in files if file["detail"] == "ffconcat")
    with av.open(str(folder / file["path"])) as container:
        assert container.format.name == "concat"
    for detail in ("ffconcat", "hls"):
        named = next(file for file in files if file["detail"] == detail)["path"]
        with pytest.raises(av.FFmpegError):
            av.open(str(folder / named), options=WHITELIST)


def test_a_whole_corpus_is_left_alone_and_others_are_not_written_over(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    summary = write_corpus(folder, CONFIG, progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert summary["files"] == 40
    with pytest.raises(UserError, match="other settings"):
        write_corpus(folder, CONFIG.model_copy(update={"seed": 12}), progress=False)
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holiday\.mp4"):
        write_corpus(tmp_path, CONFIG, progress=False)


def test_an_interrupted_corpus_is_completed(tmp_path: Path) -> None:
    config = SynthConfig(videos=3, max_side=176, max_seconds=2)
    write_corpus(tmp_path / "raw", config, progress=False)
    whole = contents(tmp_path / "raw")
    (tmp_path / "raw" / "truth.json").unlink()
    (tmp_path / "raw" / "source_00001.mp4").unlink(missing_ok=True)
    (tmp_path / "raw" / "truth.json.tmp-0a1b2c3d").write_text("{")
    write_corpus(tmp_path / "raw", config, progress=False)
    assert contents(tmp_path / "raw") == whole


@pytest.mark.parametrize("videos", [1, 2, 7])
def test_the_smallest_corpora_have_as_many_files_as_asked(videos: int, tmp_path: Path) -> None:
    config = SynthConfig(videos=videos, max_side=176, max_seconds=2)
    assert write_corpus(tmp_path / "raw", config, progress=False)["files"] == videos


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_seconds": 5, "max_seconds": 2}, "min_seconds"),
        ({"min_side": 96, "max_side": 128}, "max_side"),
        ({"images": 0.9}, "more than 1"),
        ({"fps": [0]}, "positive"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SynthConfig.model_validate(settings)
