"""A tiny checkpoint that knows nothing, a dataset of a few clips, and a painter who obeys every prompt."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kineograph.diffusion.flow import FlowConfig
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.media.encode import encode_h264
from kineograph.media.geometry import Bucket
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig, save_autoencoder, to_unit_range
from kineograph.store.checkpoints import CONFIG, checkpoint_folder, seal
from kineograph.store.manifest import SUCCESS_NAME, Manifest, TextEncoderInfo
from kineograph.store.shards import write_shard
from kineograph.store.tensors import pack
from pipelines.eval.prompts import grid_prompts
from pipelines.eval.truth import render_truth

BUCKET, STILLS = Bucket(24, 40, 9), Bucket(24, 40, 1)
FPS = 4.0


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A finished curation run of 24 clips of 24 sources, in a video and an image bucket."""
    run = tmp_path_factory.mktemp("data")
    shards = []
    for bucket, count in ((BUCKET, 16), (STILLS, 8)):
        prompts = grid_prompts(count, bucket.frames)
        rows = [
            _row(f"{bucket.name}-{place}", prompt, video, bucket)
            for place, (prompt, video) in enumerate(zip(prompts, render_truth(prompts, 0, bucket, FPS), strict=True))
        ]
        shards.append(write_shard(run, f"shards/bucket={bucket.name}/part-0.parquet", bucket.name, rows, 4))
    manifest = Manifest(
        recipe_digest="0" * 64,
        text_encoder=TextEncoderInfo(name="minilm", width=384, max_tokens=64),
        shards=tuple(shards),
        totals={},
    )
    manifest.save(run)
    (run / SUCCESS_NAME).touch()
    return run


def _row(clip_id, prompt, video, bucket):
    text = np.random.default_rng(len(prompt)).normal(size=(5, 384)).astype(np.float16)
    fps = 0.0 if bucket.is_image else FPS
    return {
        "clip_id": clip_id,
        "source_id": f"source {clip_id}",
        "media_type": "video",
        "caption": prompt,
        "height": bucket.height,
        "width": bucket.width,
        "num_frames": bucket.frames,
        "fps": fps,
        "video": encode_h264(video, FPS, crf=10),
        "text_embedding": pack(text),
    }


@pytest.fixture
def checkpoint(tmp_path, data):
    """Step 300 of a training run in a folder of its own."""
    folder = checkpoint_folder(tmp_path / "train", 300)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    vae = PatchPCA(PatchPCAConfig())
    videos = render_truth(grid_prompts(8, 0), 1, BUCKET, FPS)
    vae.fit([to_unit_range(torch.from_numpy(video)) for video in videos])
    model_config = STDiTConfig(in_channels=vae.channels, text_width=384, width=32, depth=1, heads=2)
    save_file(STDiT(model_config).state_dict(), folder / "ema.safetensors")
    save_autoencoder(vae, folder / "vae")
    config = {
        "step": 300,
        "epoch": 2,
        "manifest_digest": Manifest.load(data).digest,
        "recipe_digest": "a" * 64,
        "kind": "diffusion",
        "model": model_config.model_dump(),
        "diffusion": FlowConfig(prediction="velocity").model_dump(),
        "text_encoder": {"name": "minilm", "width": 384, "max_tokens": 64},
        "buckets": [BUCKET.name, STILLS.name],
        "fps": FPS,
        "validation_share": 0.5,
        "mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "run_id": None},
        "sampling": {"steps": 2, "guidance": {"scale": 3.0}, "first_frame_first": False},
    }
    (folder / CONFIG).write_text(json.dumps(config))
    seal(folder)
    return folder


@pytest.fixture
def painter(monkeypatch):
    """The checkpoint's samples are rendered truth; of a prompt that is not of the world, grey."""

    def generate(self, prompts, seeds, bucket=None, fps=None, on_progress=None, **_):
        bucket = bucket or self.default_bucket
        videos = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            known = prompt.startswith("a red") or " moving " in prompt
            grey = np.full((bucket.frames, bucket.height, bucket.width, 3), 128, np.uint8)
            videos.append(next(render_truth([prompt], seed, bucket, fps)) if known else grey)
            on_progress(1)
        return np.stack(videos)

    monkeypatch.setattr(TextToVideo, "generate", generate)
