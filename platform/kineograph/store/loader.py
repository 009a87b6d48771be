"""Clips of the shards as batches of tensors: rows read by address, videos decoded or latents taken, cached, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kineograph.errors import Failure, UserError
from kineograph.media.clips import decode_clip
from kineograph.models.vae import Autoencoder, to_unit_range
from kineograph.store.shards import ClipEntry, ShardReader
from kineograph.store.tensors import unpack
from kineograph.store.torch_tensors import unpack_tensor

COLUMNS = ("clip_id", "height", "width", "num_frames", "fps", "text_embedding")


@dataclass(frozen=True)
class LoadedClip:
    """A clip in memory."""

    clip_id: str
    picture: Tensor
    """Its video, uint8 (T H W 3), or its latent (C T' H' W') in the dtype that was stored."""
    is_latent: bool
    text: np.ndarray
    """(L, width); no rows when the clip has no caption."""
    fps: float
    size: tuple[int, int]
    """Height and width in pixels."""


@dataclass(frozen=True)
class Batch:
    """Clips of one bucket."""

    video: Tensor | None
    """(B 3 T H W) in [-1, 1]; None where latents were loaded."""
    text: Tensor
    """(B L width), zero where the mask is False."""
    text_mask: Tensor
    """(B L)."""
    fps: Tensor
    """(B)."""
    size: Tensor
    """(B 2): height and width in pixels."""
    latent: Tensor | None = None
    """(B C T' H' W') fp32, as stored; None where videos were loaded."""

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {n: t if t is None else t.to(device, non_blocking=True) for n, t in vars(self).items()}
        return Batch(**moved)

    def latents(self, vae: Autoencoder) -> Tensor:
        """The stored latents, else what ``vae`` makes of the videos: (B C T' H' W')."""
        if self.latent is not None:
            return self.latent
        assert self.video is not None
        return vae.encode(self.video)


class ClipLoader:
    """Loads clips of a curation run, as ``latents`` or as videos; keeps them in memory up to ``cache_bytes``."""

    def __init__(self, reader: ShardReader, cache_bytes: int, latents: bool = False) -> None:
        """Raises UserError when the run does not hold what is asked for."""
        if latents and reader.manifest.autoencoder is None:
            raise UserError(f"{reader.run} holds no latents: curate with encode.latents")
        if not latents and not reader.manifest.video:
            raise UserError(f"{reader.run} holds latents and no videos: curate with encode.video=true")
        self.reader = reader
        self._is_latent = latents
        self._room = cache_bytes
        self._cache: dict[str, LoadedClip] = {}

    def load(self, entries: Sequence[ClipEntry]) -> list[LoadedClip]:
        """The clips in order. Raises Failure that names a clip which cannot be decoded."""
        missing = [e for e in dict.fromkeys(entries) if e.clip_id not in self._cache]
        column = "latent" if self._is_latent else "video"
        rows = self.reader.read([e.address for e in missing], (*COLUMNS, column))
        fresh = {e.clip_id: self._decode(e, row) for e, row in zip(missing, rows, strict=True)}
        for clip_id, clip in fresh.items():
            size = clip.picture.nbytes + clip.text.nbytes
            if size <= self._room:
                self._room -= size
                self._cache[clip_id] = clip
        return [fresh.get(e.clip_id) or self._cache[e.clip_id] for e in entries]

    def batch(self, entries: Sequence[ClipEntry]) -> Batch:
        """The clips, which must share a bucket, as one batch."""
        return collate(self.load(entries))

    def _decode(self, entry: ClipEntry, row: dict) -> LoadedClip:
        try:
            if self._is_latent:
                picture = unpack_tensor(row["latent"])
            else:
                picture = torch.from_numpy(decode_clip(row["video"], row["num_frames"]))
            text = unpack(row["text_embedding"])
        except (ValueError, TypeError) as error:
            shard = self.reader.manifest.shards[entry.address.shard].path
            raise Failure(f"clip {entry.clip_id} of {shard} is damaged: {error}; curate again") from error
        size = (row["height"], row["width"])
        return LoadedClip(entry.clip_id, picture, self._is_latent, text, float(row["fps"]), size)


def collate(clips: Sequence[LoadedClip]) -> Batch:
    """Stack clips of one size; texts are padded to the longest."""
    pictures = torch.stack([c.picture.float() if c.is_latent else to_unit_range(c.picture) for c in clips])
    text, mask = pad_texts([c.text for c in clips])
    fps = torch.tensor([c.fps for c in clips])
    size = torch.tensor([c.size for c in clips], dtype=torch.float32)
    if clips[0].is_latent:
        return Batch(None, text, mask, fps, size, latent=pictures)
    return Batch(pictures, text, mask, fps, size)


def pad_texts(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Token states of different lengths as (B L width) fp32 and their mask (B L); L is at least 1."""
    length = max(1, *(len(t) for t in texts))
    padded = torch.zeros(len(texts), length, texts[0].shape[1])
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = torch.from_numpy(text.astype(np.float32))
        mask[row, : len(text)] = True
    return padded, mask
