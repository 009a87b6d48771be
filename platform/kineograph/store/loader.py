"""Clips of the shards as batches of tensors: rows read by address, decoded, cached, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kineograph.errors import Failure
from kineograph.media.clips import decode_clip
from kineograph.models.vae import to_unit_range
from kineograph.store.shards import ClipEntry, ShardReader
from kineograph.store.tensors import unpack

COLUMNS = ("clip_id", "height", "width", "num_frames", "fps", "text_embedding", "video")


@dataclass(frozen=True)
class LoadedClip:
    """A clip in memory."""

    clip_id: str
    frames: np.ndarray
    """uint8 (T H W 3)."""
    text: np.ndarray
    """(L, width); no rows when the clip has no caption."""
    fps: float


@dataclass(frozen=True)
class Batch:
    """Clips of one bucket."""

    video: Tensor
    """(B 3 T H W) in [-1, 1]."""
    text: Tensor
    """(B L width), zero where the mask is False."""
    text_mask: Tensor
    """(B L)."""
    fps: Tensor
    """(B)."""
    size: Tensor
    """(B 2): height and width in pixels."""

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))


class ClipLoader:
    """Loads clips of a curation run; keeps decoded ones in memory up to ``cache_bytes``."""

    def __init__(self, reader: ShardReader, cache_bytes: int) -> None:
        self.reader = reader
        self._room = cache_bytes
        self._cache: dict[str, LoadedClip] = {}

    def load(self, entries: Sequence[ClipEntry]) -> list[LoadedClip]:
        """The clips in order. Raises Failure that names a clip which cannot be decoded."""
        missing = [e for e in dict.fromkeys(entries) if e.clip_id not in self._cache]
        rows = self.reader.read([e.address for e in missing], COLUMNS)
        fresh = {e.clip_id: self._decode(e, row) for e, row in zip(missing, rows, strict=True)}
        for clip_id, clip in fresh.items():
            size = clip.frames.nbytes + clip.text.nbytes
            if size <= self._room:
                self._room -= size
                self._cache[clip_id] = clip
        return [fresh.get(e.clip_id) or self._cache[e.clip_id] for e in entries]

    def batch(self, entries: Sequence[ClipEntry]) -> Batch:
        """The clips, which must share a bucket, as one batch."""
        return collate(self.load(entries))

    def _decode(self, entry: ClipEntry, row: dict) -> LoadedClip:
        try:
            frames = decode_clip(row["video"], row["num_frames"])
            text = unpack(row["text_embedding"])
        except (ValueError, TypeError) as error:
            shard = self.reader.manifest.shards[entry.address.shard].path
            raise Failure(f"clip {entry.clip_id} of {shard} is damaged: {error}; curate again") from error
        return LoadedClip(entry.clip_id, frames, text, float(row["fps"]))


def collate(clips: Sequence[LoadedClip]) -> Batch:
    """Stack clips of one size; texts are padded to the longest."""
    video = torch.stack([to_unit_range(torch.from_numpy(c.frames)) for c in clips])
    text, mask = pad_texts([c.text for c in clips])
    size = torch.tensor([[c.frames.shape[1], c.frames.shape[2]] for c in clips], dtype=torch.float32)
    return Batch(video, text, mask, torch.tensor([c.fps for c in clips]), size)


def pad_texts(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Token states of different lengths as (B L width) fp32 and their mask (B L); L is at least 1."""
    length = max(1, *(len(t) for t in texts))
    padded = torch.zeros(len(texts), length, texts[0].shape[1])
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = torch.from_numpy(text.astype(np.float32))
        mask[row, : len(text)] = True
    return padded, mask
