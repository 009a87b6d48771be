"""A curation run of real mp4 clips or of latents, made in a moment, and what tests do with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kineograph.media.encode import encode_h264
from kineograph.media.geometry import Bucket
from kineograph.store.manifest import SUCCESS_NAME, AutoencoderInfo, Manifest, TextEncoderInfo
from kineograph.store.shards import RowAddress, ShardReader, write_shard
from kineograph.store.tensors import pack
from kineograph.store.torch_tensors import DTYPES, pack_tensor
from pipelines.train.plan.plan import Slot

STILLS, VIDEOS = Bucket(32, 32, 1), Bucket(32, 32, 9)
WIDTH = 8
"""Of captions' states."""
ROWS, GROUP = 10, 4
"""Clips of a shard and of a row group."""
SHARDS = 2
"""Of each bucket."""
LATENT = (4, 3, 4, 4)


def clip_id(bucket: Bucket, number: int) -> str:
    return f"{bucket.name}-{number:02d}"


def frames_of(bucket: Bucket, number: int) -> np.ndarray:
    """What clip ``number`` shows: a square that moves, uint8 (T H W 3)."""
    frames = np.full((bucket.frames, bucket.height, bucket.width, 3), 10 * number % 200, np.uint8)
    for time, frame in enumerate(frames):
        frame[number % 20 : number % 20 + 8, 2 * time : 2 * time + 8] = (250, 40, 5 * number)
    return frames


def latent_of(number: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(number)).to(dtype)


def make_run(run: Path, buckets: Sequence[Bucket] = (STILLS, VIDEOS), dtype: str = "") -> Path:
    """A finished run at ``run``: SHARDS shards of each bucket, with latents of ``dtype`` where one is given, else with
    videos. Clip n of a bucket has n % 3 tokens of caption."""

    def row(bucket: Bucket, number: int) -> dict:
        return {
            "clip_id": clip_id(bucket, number),
            "source_id": f"source {number // 2}",
            "media_type": "video",
            "caption": f"number {number}",
            "height": bucket.height,
            "width": bucket.width,
            "num_frames": bucket.frames,
            "fps": 0.0 if bucket.is_image else 8.0,
            "text_embedding": pack(np.full((number % 3, WIDTH), number, np.float16)),
            "video": None if dtype else encode_h264(frames_of(bucket, number), 8),
            "latent": pack_tensor(latent_of(number, DTYPES[dtype])) if dtype else None,
        }

    shards = [
        write_shard(
            run,
            f"shards/{bucket.name}-{part}.parquet",
            bucket.name,
            [row(bucket, number) for number in range(part * ROWS, (part + 1) * ROWS)],
            GROUP,
        )
        for bucket in buckets
        for part in range(SHARDS)
    ]
    info = AutoencoderInfo(kind="patch_pca", channels=4, strides=(4, 8, 8), dtype=dtype, digest="0" * 64)
    Manifest(
        recipe_digest="0" * 64,
        text_encoder=TextEncoderInfo(name="test", width=WIDTH, max_tokens=4),
        video=not dtype,
        autoencoder=info if dtype else None,
        shards=tuple(shards),
        totals={},
    ).save(run)
    (run / SUCCESS_NAME).touch()
    return run


def addresses(reader: ShardReader, bucket: Bucket) -> list[RowAddress]:
    """Of the clips of a bucket, by number."""
    return [entry.address for entry in reader.index() if entry.bucket == bucket.name]


def slots(reader: ShardReader, bucket: Bucket, numbers: Sequence[int], epoch: int = 0) -> tuple[Slot, ...]:
    """Slots of clips of a bucket by number."""
    found = addresses(reader, bucket)
    return tuple(Slot(found[number], epoch, place) for place, number in enumerate(numbers))


def shuffled(reader: ShardReader, steps: int, size: int = 5) -> list[list[tuple[Slot, ...]]]:
    """A rank's work: in each step a micro-batch of videos and one of stills, clips of all shards in a random order."""
    random = np.random.default_rng(0)
    return [
        [slots(reader, bucket, random.permutation(SHARDS * ROWS)[:size], step) for bucket in (VIDEOS, STILLS)]
        for step in range(steps)
    ]


def rewrite(run: Path, bucket: Bucket, number: int, change: Callable[[dict], dict]) -> None:
    """Replace the row of a clip by what ``change`` makes of it; the manifest follows."""
    reader = ShardReader(run)
    address = addresses(reader, bucket)[number]
    old = reader.manifest.shards[address.shard]
    rows = reader.columns(address.shard, reader_columns(reader)).to_pylist()
    place = reader.row_number(address)
    rows[place] = change(rows[place])
    new = write_shard(run, old.path, old.bucket, rows, GROUP)
    shards = [new if shard.path == old.path else shard for shard in reader.manifest.shards]
    reader.manifest.model_copy(update={"shards": tuple(shards)}).save(run)


def reader_columns(reader: ShardReader) -> list[str]:
    from kineograph.store.schema import SHARD_SCHEMA

    return list(SHARD_SCHEMA.names)


@dataclass(frozen=True)
class Poison:
    """A collate that does to its process what a broken codec would, when it meets one of ``clips``: once for each file of
    that name in ``armed``, or always where it is None."""

    clips: tuple[str, ...]
    how: str
    armed: Path | None = None

    def __call__(self, clips: Sequence, slots: Sequence) -> torch.Tensor:
        import os
        import signal
        import time

        for clip in clips:
            if clip.clip_id in self.clips:
                if self.armed is not None:
                    try:
                        (self.armed / clip.clip_id).unlink()
                    except FileNotFoundError:
                        continue
                if self.how == "hang":
                    time.sleep(1000)
                if self.how == "raise":
                    raise RuntimeError("the collate is broken")
                os.kill(os.getpid(), getattr(signal, self.how))
        return torch.stack([clip.picture for clip in clips])


def ids_and_pictures(clips: Sequence, slots: Sequence) -> dict:
    """A collate whose batch is a dict."""
    return {
        "picture": torch.stack([clip.picture for clip in clips]),
        "number": torch.tensor([int(clip.clip_id[-2:]) for clip in clips]),
        "epoch": torch.tensor([slot.epoch for slot in slots]),
    }
