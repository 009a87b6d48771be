"""Latents in the shards: what the autoencoder makes of the written clips, whoever makes it, and nothing made twice."""

import shutil

import numpy as np
import pytest
import torch

from kineograph.config import parse_config
from kineograph.errors import Failure, RecipeError, UserError
from kineograph.media.clips import decode_clip
from kineograph.media.encode import encode_h264
from kineograph.media.geometry import Bucket
from kineograph.models.vae import fingerprint, load_autoencoder, to_unit_range
from kineograph.store.manifest import Manifest, verify
from kineograph.store.shards import ShardReader
from kineograph.store.torch_tensors import unpack_tensor
from pipelines.data import pipeline
from pipelines.data.config import CurateConfig, Encode
from pipelines.data.latents import Latents, check_latents, encode_batch, encode_videos, fit_autoencoder, read_latent
from pipelines.data.times import stage_times

SMALL = {"channels": 8, "fit_clips": 4}
SIZE = "32x32x9"


def rows_of(run):
    reader = ShardReader(run)
    return reader.read([entry.address for entry in reader.index()])


def latents_of(run):
    return {row["clip_id"]: unpack_tensor(row["latent"]) for row in rows_of(run)}


def counts(run):
    return {entry["stage"]: entry["items"] for entry in stage_times(run)}


def shard_bytes(run):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted((run / "shards").rglob("*.parquet"))}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run's folder with five encoded clips of noise that moves, and the autoencoder fitted to them in vae."""
    run = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(0)
    clips = []
    for number in range(5):
        picture = rng.integers(0, 256, (8, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        video = np.stack([np.roll(picture, shift, axis=1) for shift in range(9)])
        (run / f"{number}.mp4").write_bytes(encode_h264(video[:, :32, :32], 4.0, crf=14, preset="veryfast"))
        clips.append((f"{number}.mp4", 9))
    fit_autoencoder({"folder": "vae", "clips": clips}, run=str(run), settings=Latents(**SMALL))
    return run, clips


def made(written, tmp_path, settings, together):
    """Bytes of the files of the latents, ``together`` to a batch."""
    run, clips = written
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    digest = fingerprint(load_autoencoder(run / "vae"))
    items = [(path, frames, f"key{path[0]}") for path, frames in clips]
    for start in range(0, len(items), together):
        batch = {"clips": items[start : start + together]}
        encode_batch(batch, run=str(tmp_path), autoencoder=digest, settings=settings)
    return {path.name: path.read_bytes() for path in (tmp_path / "work" / "latents").rglob("*.safetensors")}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_bytes_of_a_latent_do_not_depend_on_its_batch(written, tmp_path, dtype):
    one, four = (
        made(written, tmp_path / str(n), Latents(**SMALL, dtype=dtype, batch_size=n), together=n) for n in (1, 4)
    )
    assert len(one) == 5
    assert one == four


def test_a_batch_that_is_filled_up_gives_the_latents_of_a_full_one(written):
    """As on a GPU; torch's ``meta`` has no numbers, and ``cpu:0`` is a CPU by another name."""
    run, clips = written
    vae = load_autoencoder(run / "vae")
    videos = [to_unit_range(torch.from_numpy(decode_clip((run / path).read_bytes(), n))) for path, n in clips]
    settings = Latents(**SMALL, dtype="float32", device="cpu:0", batch_size=4)
    torch.testing.assert_close(
        torch.stack(encode_videos(vae, videos, settings)), vae.encode(torch.stack(videos)), atol=1e-6, rtol=0
    )


def test_a_damaged_latent_is_made_again(written, tmp_path):
    made(written, tmp_path, Latents(**SMALL), together=4)
    path = next((tmp_path / "work" / "latents").rglob("key0.safetensors"))
    path.write_bytes(b"rubbish")
    with pytest.raises(Failure, match="run the same command again"):
        read_latent(tmp_path, "key0")
    assert not path.exists()


def test_a_damaged_clip_is_written_again(written, tmp_path):
    run, clips = written
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "0.mp4").write_bytes(b"rubbish")
    with pytest.raises(Failure, match=r"0\.mp4 is damaged or gone: run the same command again"):
        fit_autoencoder({"folder": "again", "clips": clips}, run=str(tmp_path), settings=Latents(**SMALL))
    assert not (tmp_path / "0.mp4").exists()


@pytest.mark.parametrize("bucket", ["32x30x9", "30x32x9", "32x32x8"])
def test_a_bucket_that_does_not_fit_is_named_before_anything_starts(bucket):
    with pytest.raises(UserError, match=f"bucket {bucket} does not fit the autoencoder of encode.latents"):
        check_latents(Latents(), [Bucket.parse(SIZE), Bucket.parse(bucket)])


def test_a_folder_without_an_autoencoder_is_named(tmp_path):
    with pytest.raises(UserError, match="no autoencoder at"):
        check_latents(Latents(vae=str(tmp_path)), [Bucket.parse(SIZE)])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"video": False}, "shards need videos or latents"),
        ({"latents": {"stride": 2, "channels": 13}}, "more than the 12 pixels"),
        ({"latents": {"dtype": "float8"}}, "float16"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(raw, message):
    with pytest.raises(RecipeError, match=message):
        parse_config(raw, Encode)


@pytest.fixture(scope="module")
def good(raw, tmp_path_factory):
    """Two clips of a video and an image."""
    folder = tmp_path_factory.mktemp("good")
    for name in ("two.mp4", "two.json", "photo.png", "photo.txt"):
        shutil.copy(raw / name, folder)
    return folder


@pytest.fixture(scope="module")
def config(recipe):
    raw = recipe.model_dump(mode="json")
    raw["buckets"]["sizes"] = ["32x32x1", SIZE, "24x40x9"]
    raw["encode"].update(video=False, latents={**SMALL, "dtype": "float32"})
    return CurateConfig.model_validate(raw)


@pytest.fixture(scope="module")
def alone(good, config, ray_of_two, tmp_path_factory):
    """(run with latents only, its summary)."""
    run = tmp_path_factory.mktemp("alone") / "run"
    return run, pipeline.curate(config, good, run)


@pytest.fixture
def own(alone, tmp_path):
    shutil.copytree(alone[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
class TestRun:
    """Curation for real: latents alone, in three passes over one run."""

    def test_shards_hold_latents_and_no_videos(self, alone):
        rows = rows_of(alone[0])
        assert len(rows) == 3
        assert [row["video"] for row in rows] == [None] * 3
        for row in rows:
            t, h, w = 1 + (row["num_frames"] - 1) // 4, row["height"] // 4, row["width"] // 4
            assert (row["latent"]["dtype"], row["latent"]["shape"]) == ("float32", [8, t, h, w])

    def test_the_manifest_names_the_autoencoder_that_lies_beside_it(self, alone):
        manifest = Manifest.load(alone[0])
        info = manifest.autoencoder
        assert (manifest.video, info.kind, info.channels, info.strides) == (False, "patch_pca", 8, (4, 4, 4))
        assert fingerprint(load_autoencoder(alone[0] / "vae")) == info.digest
        assert [fault for _, fault in verify(alone[0], manifest) if fault] == []

    def test_other_workers_and_another_batch_give_the_same_dataset(self, alone, good, config, tmp_path):
        settings = config.encode.latents.model_copy(update={"batch_size": 1})
        encode = config.encode.model_copy(update={"latents": settings})
        other = config.model_copy(update={"workers": 1, "encode": encode})
        assert pipeline.curate(other, good, tmp_path / "run")["digest"] == alone[1]["digest"]
        assert shard_bytes(tmp_path / "run") == shard_bytes(alone[0])

    def test_with_videos_a_latent_is_that_of_its_video(self, alone, own):
        before = counts(own)
        pipeline.decide(own, ["encode.video=true"])
        vae = load_autoencoder(own / "vae")
        for row in rows_of(own):
            video = to_unit_range(torch.from_numpy(decode_clip(row["video"], row["num_frames"])))
            assert torch.equal(unpack_tensor(row["latent"]), vae.encode(video[None])[0])
        again = counts(own)
        assert {stage for stage in again if again[stage] != before[stage]} == {"selected", "wrote"}

    def test_another_dtype_makes_latents_and_shards_anew_and_no_more(self, alone, own):
        before = counts(own)
        exact = latents_of(own)
        pipeline.decide(own, ["encode.latents.dtype=bfloat16"])
        again = counts(own)
        changed = {stage: again[stage] - before[stage] for stage in again if again[stage] != before[stage]}
        assert set(changed) == {"selected", "encoded latents", "wrote"}
        rounded = latents_of(own)
        assert Manifest.load(own).digest != alone[1]["digest"]
        assert all(torch.equal(rounded[clip_id], exact[clip_id].bfloat16()) for clip_id in exact)

    def test_a_saved_autoencoder_gives_what_it_gave(self, alone, own, tmp_path):
        shutil.copytree(own / "vae", tmp_path / "saved")
        pipeline.decide(own, [f"encode.latents.vae={tmp_path / 'saved'}"])
        assert Manifest.load(own).digest == alone[1]["digest"]

    def test_without_latents_no_autoencoder_is_left(self, own):
        pipeline.decide(own, ["encode.video=true", "encode.latents=null"])
        assert not (own / "vae").exists()
        assert Manifest.load(own).autoencoder is None
        assert [row["latent"] for row in rows_of(own)] == [None] * 3

    def test_what_was_lost_is_made_again_and_no_more(self, alone, own):
        before = counts(own)["encoded latents"]
        paths = sorted((own / "work" / "latents").rglob("*.safetensors"))
        lost = paths[0].read_bytes()
        paths[0].unlink()
        shutil.rmtree(own / "vae")
        pipeline.decide(own)
        assert counts(own)["encoded latents"] == before + 1
        assert paths[0].read_bytes() == lost
        assert Manifest.load(own).digest == alone[1]["digest"]
        assert fingerprint(load_autoencoder(own / "vae")) == Manifest.load(own).autoencoder.digest
