"""The validation loss on a dataset of latents: that of its videos, or one line that says why there is none."""

import json
import shutil

import numpy as np
import pytest
import torch

from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.media.clips import decode_clip
from kineograph.models.vae import fingerprint, to_unit_range
from kineograph.store.manifest import AutoencoderInfo, Manifest
from kineograph.store.shards import ShardReader, write_shard
from kineograph.store.torch_tensors import pack_tensor
from pipelines.eval.config import EvalConfig
from pipelines.eval.pipeline import evaluate

SMALL = EvalConfig.model_validate(
    {"videos": 2, "batch_size": 2, "oracle_scenes": 24, "report": {"videos": 2, "rows": 2}}
)


@pytest.fixture
def latents(data, checkpoint, tmp_path):
    """The dataset as latents of the checkpoint's autoencoder, without videos."""
    run = shutil.copytree(data, tmp_path / "latents")
    vae = TextToVideo.load(checkpoint).vae
    manifest, reader = Manifest.load(run), ShardReader(run)
    rows = {shard.path: [] for shard in manifest.shards}
    for entry in reader.index():
        (row,) = reader.read([entry.address])
        video = to_unit_range(torch.from_numpy(decode_clip(row["video"], row["num_frames"])))
        latent = pack_tensor(vae.encode(video[None])[0])
        rows[manifest.shards[entry.address.shard].path].append({**row, "video": None, "latent": latent})
    reader.close()
    shards = tuple(write_shard(run, s.path, s.bucket, rows[s.path], 4) for s in manifest.shards)
    info = AutoencoderInfo(
        kind="patch_pca", channels=vae.channels, strides=vae.strides, dtype="float32", digest=fingerprint(vae)
    )
    manifest.model_copy(update={"shards": shards, "video": False, "autoencoder": info}).save(run)
    return run


def test_it_is_that_of_the_videos(checkpoint, data, latents, painter):
    facts = [evaluate(SMALL, checkpoint, run) for run in (data, latents)]
    of_videos, of_latents = (f["validation_loss_by_timestep"] for f in facts)
    np.testing.assert_allclose(list(of_latents.values()), list(of_videos.values()), atol=1e-4)


def test_latents_of_another_autoencoder_are_no_ground_for_it(checkpoint, latents, painter):
    raw = json.loads((latents / "manifest.json").read_text())
    info = AutoencoderInfo(**{**raw["autoencoder"], "digest": "0" * 64})
    Manifest.load(latents).model_copy(update={"autoencoder": info}).save(latents)
    facts = evaluate(SMALL, checkpoint, latents)
    assert "no validation loss: the dataset holds latents of another autoencoder, and no videos" in facts["notes"]
    assert facts["validation_loss_by_timestep"] is None
