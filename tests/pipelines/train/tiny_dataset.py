"""A curation run of random latents, made in a moment and without Ray, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kineograph.media.geometry import Bucket
from kineograph.models.text import ClassLabels
from kineograph.models.vae import PatchPCA, PatchPCAConfig, fingerprint, save_autoencoder
from kineograph.store.manifest import AUTOENCODER_FOLDER, SUCCESS_NAME, AutoencoderInfo, Manifest, TextEncoderInfo
from kineograph.store.shards import write_shard
from kineograph.store.tensors import pack
from kineograph.store.torch_tensors import pack_tensor

STILLS, VIDEOS = Bucket(64, 64, 1), Bucket(64, 64, 9)
VAE = {"channels": 4, "stride": 8, "temporal_stride": 4}
WIDTH = 32
"""Channels of its captions' states."""
CLIPS = 8
"""In each bucket."""
WORDS = TextEncoderInfo(name="t5:nowhere", width=WIDTH, max_tokens=10)
LABELS = TextEncoderInfo(name=ClassLabels.name, width=ClassLabels.width, max_tokens=1)


def make_dataset(
    run: Path,
    encoder: TextEncoderInfo = WORDS,
    buckets: Sequence[Bucket] = (VIDEOS,),
    captions: Sequence[str] = ("0", "1", "2", ""),
) -> Path:
    """A finished run at ``run`` with latents of 4 channels and no videos; clips have the ``captions`` in turn. Its
    autoencoder is in the folder vae."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    vae = PatchPCA(PatchPCAConfig.model_validate(VAE))
    vae.fit([torch.rand(3, 9, 64, 64) * 2 - 1 for _ in range(4)])
    save_autoencoder(vae, run / AUTOENCODER_FOLDER)

    def row(bucket: Bucket, number: int) -> dict:
        caption = captions[number % len(captions)]
        if not caption:
            text = np.zeros((0, encoder.width), np.float16)
        elif encoder.name == ClassLabels.name:
            text = ClassLabels().encode([caption])[0]
        else:
            text = random.normal(size=(2 + number % 3, encoder.width)).astype(np.float16)
        return {
            "clip_id": f"{bucket.name}-{number}",
            "source_id": f"source {number}",
            "media_type": "video",
            "caption": caption,
            "height": bucket.height,
            "width": bucket.width,
            "num_frames": bucket.frames,
            "fps": 0.0 if bucket.is_image else 8.0,
            "text_embedding": pack(text),
            "latent": pack_tensor(torch.randn(4, 1 + (bucket.frames - 1) // 4, 8, 8)),
        }

    shards = [
        write_shard(run, f"shards/{bucket.name}.parquet", bucket.name, [row(bucket, n) for n in range(CLIPS)], 4)
        for bucket in buckets
    ]
    made = AutoencoderInfo(kind="patch_pca", channels=4, strides=vae.strides, dtype="float32", digest=fingerprint(vae))
    manifest = Manifest(
        recipe_digest="0" * 64,
        text_encoder=encoder,
        video=False,
        autoencoder=made,
        shards=tuple(shards),
        totals={},
    )
    manifest.save(run)
    (run / SUCCESS_NAME).touch()
    return run
