"""Whole runs over what is not a folder of plain videos: an object store, a manifest, odd files."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from kineograph.config import dump_yaml
from kineograph.media.encode import write_mp4
from kineograph.store.shards import ShardReader
from pipelines.data.inputs.locations import Inputs
from pipelines.data.ledger import read_ledger
from pipelines.data.pipeline import curate

pytestmark = pytest.mark.slow


def square(seconds, fps=10, height=64, width=96, ground=60, left=8.0, speed=20.0, top=24):
    """A square that moves right: uint8 (T, H, W, 3)."""
    frames = np.full((round(seconds * fps), height, width, 3), ground, np.uint8)
    for index, frame in enumerate(frames):
        x = int(left + index * speed / fps) % (width - 16)
        frame[top : top + 16, x : x + 16] = (220, 110, 30)
    return frames


def decode(video):
    """The frames of an mp4, uint8 (T, H, W, 3)."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def shard_rows(run):
    reader = ShardReader(run)
    return reader.read([entry.address for entry in reader.index()])


# --- an object store


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    (folder / "day 1").mkdir()
    write_mp4(folder / "day 1" / "a.mp4", square(3), 10)
    write_mp4(folder / "b.mp4", square(3, ground=170, top=8), 10)
    Image.fromarray(square(0.1, ground=110, top=40)[0]).save(folder / "c.png")
    for name, text in (("day 1/a", "a square"), ("b", "a light square"), ("c", "a photo")):
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def store(footage):
    """The endpoint of an S3 server that holds the footage under s3://bkt/raw."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    secrets = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **secrets)
    client.create_bucket(Bucket="bkt", ACL="public-read")
    for path in footage.rglob("*.*"):
        key = f"raw/{path.relative_to(footage)}"
        client.put_object(Bucket="bkt", Key=key, Body=path.read_bytes(), ACL="public-read")
    listed = b"uri,caption\n../raw/b.mp4,one\n../raw/gone.mp4,two\n"
    client.put_object(Bucket="bkt", Key="lists/raw.csv", Body=listed, ACL="public-read")
    yield url
    server.stop()


@pytest.fixture(scope="module")
def local(footage, recipe, ray_of_two, tmp_path_factory):
    run = tmp_path_factory.mktemp("local") / "run"
    return run, curate(recipe, footage, run)


def fetched(caplog):
    """Key -> how often it was read from the store."""
    lines = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
    keys = [line.split("GET /bkt/raw/")[1].split()[0] for line in lines if "GET /bkt/raw/" in line]
    return Counter(key.partition("?")[0] for key in keys if key.partition("?")[0])


def test_a_bucket_gives_the_dataset_that_the_same_folder_gives(local, store, recipe, tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "kineograph.cli.main", "data", "run", tmp_path / "recipe.yaml", "--json"]
    command += ["--input", "s3://bkt/raw/", "--out", tmp_path / "run"]
    command += ["--set", f"inputs.storage_options.endpoint_url={store}"]
    with caplog.at_level(logging.INFO, "werkzeug"):
        done = subprocess.run(command, env={**clean, **keys}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert fetched(caplog) == {"day%201/a.mp4": 1, "b.mp4": 1, "c.png": 1} | {
            "day%201/a.txt": 1,
            "b.txt": 1,
            "c.txt": 1,
        }
    assert json.loads(done.stdout)["digest"] == local[1]["digest"]
    (sources, clips), (those, _) = read_ledger(tmp_path / "run"), read_ledger(local[0])
    assert [row["uri"] for row in sources] == ["b.mp4", "c.png", "day 1/a.mp4"]
    assert [row["source_id"] for row in sources] == [row["source_id"] for row in those]
    captions = {(clip["uri"], clip["caption"], clip["caption_source"]) for clip in clips}
    assert captions == {
        ("b.mp4", "a light square", "sidecar"),
        ("c.png", "a photo", "sidecar"),
        ("day 1/a.mp4", "a square", "sidecar"),
    }
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").glob("*.*"))
    assert b"testing" not in written


def test_an_object_that_is_gone_is_a_row_and_the_others_are_curated(store, recipe, ray_of_two, tmp_path):
    inputs = Inputs(storage_options={"endpoint_url": store, "anon": True})
    summary = curate(recipe.model_copy(update={"inputs": inputs}), "s3://bkt/lists/raw.csv", tmp_path / "run")
    fates = {row["uri"]: (row["reason"], row["detail"]) for row in read_ledger(tmp_path / "run")[0]}
    assert fates == {"../raw/b.mp4": ("", ""), "../raw/gone.mp4": ("fetch_failed", "it does not exist")}
    assert summary["totals"]["clips_kept"] == 1


# --- a manifest


def test_a_manifest_gives_spans_captions_and_labels_and_every_second_is_accounted_for(
    footage, recipe, ray_of_two, tmp_path
):
    write_mp4(tmp_path / "long.mp4", square(9, ground=120, speed=8, top=40), 10)
    shutil.copy(footage / "b.mp4", tmp_path / "b.mp4")
    (tmp_path / "list.csv").write_text(
        "uri,caption,start,end,camera,take\n"
        "long.mp4,the beginning,0,3,dolly,1\n"
        "long.mp4,the end,6.5,9,crane,2\n"
        "b.mp4,all of it,,,dolly,\n"
    )
    summary = curate(recipe, tmp_path / "list.csv", tmp_path / "run")
    sources, clips = read_ledger(tmp_path / "run")
    found = [
        (c["uri"], c["start_s"], c["end_s"], c["reason"], c["caption"], c["caption_source"], json.loads(c["labels"]))
        for c in clips
    ]
    approx = pytest.approx
    dolly, crane = {"camera": "dolly", "take": "1"}, {"camera": "crane", "take": "2"}
    assert found == [
        ("b.mp4", 0, approx(3), "", "all of it", "manifest", {"camera": "dolly"}),
        ("long.mp4", 0, approx(3), "", "the beginning", "manifest", dolly),
        ("long.mp4", approx(3), approx(6.5), "outside_span", "", "", {}),
        ("long.mp4", approx(6.5), approx(9), "", "the end", "manifest", crane),
    ]
    assert {row["uri"]: json.loads(row["labels"]) for row in sources} == {"b.mp4": {"camera": "dolly"}, "long.mp4": {}}
    rows = {row["caption"]: json.loads(row["labels"]) for row in shard_rows(tmp_path / "run")}
    assert rows == {"all of it": {"camera": "dolly"}, "the beginning": dolly, "the end": crane}
    seconds = summary["totals"]["seconds"]
    assert seconds["input"] == pytest.approx(12)
    assert seconds["rejected"] == {"outside_span": pytest.approx(3.5)}
    assert seconds["kept"] + seconds["unused"] == pytest.approx(8.5)


# --- odd files and bars

_path = Path(__file__).parents[2] / "kineograph" / "media" / "mutate.py"
_spec = spec_from_file_location("mutate_for_runs", _path)
mutate = module_from_spec(_spec)
sys.modules["mutate_for_runs"] = mutate
_spec.loader.exec_module(mutate)


def pictures(clip, count=30):
    return mutate.real_frames(clip, count, 128, 72)


def interlaced(frames):
    """Fields of different times, one in the even lines and one in the odd."""
    woven = []
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        frame = first.copy()
        frame[1::2] = second[1::2]
        woven.append(frame)
    return woven


def at_times(path, frames, stamps):
    """Frames at ``stamps`` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "crf": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, stamp in zip(frames, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def turned(data):
    """``data`` of an mp4 that is to be shown turned to the right."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = ((value << 16).to_bytes(4, "big", signed=True) for value in (0, 1, -1, 0))
    return data[:at] + a + b + bytes(4) + c + d + data[at + 20 :]


def with_bars(frames, size=96):
    barred = np.zeros((len(frames), size, frames[0].shape[1], 3), np.uint8)
    top = (size - frames[0].shape[0]) // 2
    barred[:, top : top + frames[0].shape[0]] = frames
    return barred


@pytest.fixture(scope="module")
def odd(tmp_path_factory, recipe, ray_of_two):
    """(folder of odd files, the finished run over it)."""
    folder = tmp_path_factory.mktemp("odd")
    fields = {"flags": "+ildct+ilme", "x264-params": "tff=1", "crf": "10"}
    woven = interlaced(pictures("bigbuckbunny", 60))
    (folder / "interlaced.mkv").write_bytes(
        mutate.encoded(woven, "matroska", "libx264", "yuv420p", codec_options=fields)
    )
    upright = mutate.encoded(pictures("bikes", 60)[30:], "mp4", "libx264", "yuv420p")
    (folder / "turned.mp4").write_bytes(turned(upright))
    deep = pictures("carphone_pristine")
    (folder / "ten_bits.mkv").write_bytes(mutate.encoded(deep, "matroska", "libx264", "yuv420p10le"))
    stamps = np.cumsum([0, *([40, 40, 200, 60, 120] * 6)])[:30]
    at_times(folder / "variable.mp4", square(3, height=72, width=128), stamps.tolist())
    images = [Image.fromarray(cv2.resize(frame, (64, 48))) for frame in square(3, ground=200, top=4)]
    images[0].save(folder / "moving.gif", save_all=True, append_images=images[1:], duration=100)
    write_mp4(folder / "bars.mp4", with_bars(pictures("bikes", 120)[90:]), 12)
    for number, name in enumerate(("photo.jpg", "photo.webp", "photo.tiff", "photo.bmp")):
        Image.fromarray(pictures("bigbuckbunny", 90)[60 + number * 9]).save(folder / name)
    sizes = ["32x32x1", "32x56x8", "48x32x8", "32x44x8"]
    changes = {
        "clips": {"min_seconds": 1.0, "max_seconds": 4.0},
        "filters": {"resolution": {"min": 24}},
        "buckets": {"sizes": sizes, "fps": 8.0},
        "duplicates": {"perceptual": {"enabled": False}},
        "captions": {"require": False},
    }
    config = type(recipe).model_validate({**recipe.model_dump(mode="json"), **changes})
    run = tmp_path_factory.mktemp("odd_run") / "run"
    curate(config, folder, run)
    return folder, run


def test_odd_files_all_give_clips_and_every_frame_that_the_decoder_gives(odd):
    folder, run = odd
    sources, clips = read_ledger(run)
    assert len(sources) == 10
    for row in sources:
        with av.open(str(folder / row["uri"])) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert (row["uri"], row["status"], row["detail"], row["frames"]) == (row["uri"], "ok", "", frames)
        assert "keep" in {clip["decision"] for clip in clips if clip["uri"] == row["uri"]}, row["uri"]
    kinds = Counter(row["media_type"] for row in sources)
    assert kinds == {"video": 6, "image": 4}


def test_a_turned_video_is_written_as_it_is_shown(odd):
    rows = [row for row in shard_rows(odd[1]) if row["source_uri"] == "turned.mp4"]
    assert {(row["height"], row["width"]) for row in rows} == {(48, 32)}
    middle = [np.rot90(frame, -1)[10:-10] for frame in pictures("bikes", 60)[30:]]  # 108 x 72 of 128 x 72
    shown = np.stack([cv2.resize(frame, (32, 48), interpolation=cv2.INTER_AREA) for frame in middle]).astype(int)
    for frame in np.concatenate([decode(row["video"]) for row in rows]):
        assert np.abs(frame - shown).mean(axis=(1, 2, 3)).min() < 6


def test_bars_are_found_and_not_written(odd):
    clips = [clip for clip in read_ledger(odd[1])[1] if clip["uri"] == "bars.mp4" and clip["decision"] == "keep"]
    assert clips
    for clip in clips:
        x, y, width, height = clip["content"]
        assert (x, width) == (0, 128)
        assert abs(y - 12) <= 2
        assert abs(height - 72) <= 4
    for row in shard_rows(odd[1]):
        if row["source_uri"] == "bars.mp4":
            frames = decode(row["video"])
            assert frames[:, [0, -1]].mean(axis=(2, 3)).min() > 24  # a bar is at 0, and blurred by half a pixel at most


def test_a_frame_of_two_fields_is_written_without_combs(odd):
    rows = [row for row in shard_rows(odd[1]) if row["source_uri"] == "interlaced.mkv"]
    assert rows
    for row in rows:
        frames = decode(row["video"]).astype(int)
        lines = frames.mean(axis=3)
        comb = np.abs(2 * lines[:, 1:-1] - lines[:, :-2] - lines[:, 2:]).mean()
        step = np.abs(lines[:, 2:] - lines[:, :-2]).mean()
        assert comb < 1.5 * step


def test_frames_of_a_variable_rate_are_taken_at_their_times(odd):
    (row,) = [row for row in shard_rows(odd[1]) if row["source_uri"] == "variable.mp4"]
    stamps = np.cumsum([0, *([40, 40, 200, 60, 120] * 6)])[:30] / 1000
    originals = square(3, height=72, width=128).astype(int)
    wanted = row["start_s"] + (np.arange(8) + 0.5) / row["fps"]
    centres = []
    for frame in decode(row["video"]).astype(int):
        ink = (frame[..., 0] - frame[..., 2]).clip(0).astype(float)
        centres.append(np.average(np.arange(56), weights=ink.sum(axis=0) + 1e-9))
    expected = []
    for time in wanted:
        index = int(np.searchsorted(stamps, time, side="right")) - 1
        ink = (originals[index, ..., 0] - originals[index, ..., 2]).clip(0).astype(float)
        column = np.average(np.arange(128), weights=ink.sum(axis=0))
        expected.append((column + 0.5) * 56 / 128 - 0.5)
    # A frame, of at most 0.2 s, to either side is 4 pixels of 128 at most.
    assert np.abs(np.array(centres) - expected).max() < 2.5
