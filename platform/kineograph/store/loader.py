"""Clips of the shards as batches of tensors: rows decoded to videos or latents, checked, stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from kineograph.errors import Failure, UserError
from kineograph.media.clips import decode_clip
from kineograph.models.vae import Autoencoder, to_unit_range
from kineograph.store.shards import ClipEntry, ShardReader
from kineograph.store.tensors import unpack
from kineograph.store.torch_tensors import DTYPES, unpack_tensor

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

    @property
    def nbytes(self) -> int:
        """Memory that it takes, nearly."""
        return self.picture.nbytes + self.text.nbytes

    def copy(self) -> LoadedClip:
        """The same clip in memory of its own."""
        return LoadedClip(**{**vars(self), "picture": self.picture.clone(), "text": self.text.copy()})


@dataclass(frozen=True)
class ClipDecoder:
    """Makes clips of a run's rows. It is small, and can be pickled."""

    column: str
    """Which is decoded: video, or latent."""
    text_width: int
    channels: int = 0
    """Of latents."""
    strides: tuple[int, int, int] = (1, 1, 1)
    """Frames, rows and columns of pixels per latent."""
    dtype: str = ""
    """Of latents."""

    @classmethod
    def of(cls, reader: ShardReader, latents: bool) -> Self:
        """What decodes the rows of a run to latents or videos. Raises UserError when it does not hold what is asked for."""
        manifest = reader.manifest
        width, made = manifest.text_encoder.width, manifest.autoencoder
        if not latents and manifest.video:
            return cls("video", width)
        if not latents:
            raise UserError(f"{reader.run} holds latents and no videos: curate with encode.video=true")
        if made is None:
            raise UserError(f"{reader.run} holds no latents: curate with encode.latents")
        return cls("latent", width, made.channels, made.strides, made.dtype)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the shards that are read."""
        return (*COLUMNS, self.column)

    def decode(self, row: Mapping[str, Any]) -> LoadedClip:
        """The clip of a row with :attr:`columns`. Raises ValueError, which says how it is damaged."""
        try:
            size = (row["height"], row["width"])
            picture = self._latent(row) if self.column == "latent" else self._video(row)
            text = unpack(row["text_embedding"])
            if text.ndim != 2 or text.shape[1] != self.text_width or not np.isfinite(text).all():
                raise ValueError(f"its caption's states are no finite numbers of shape (L, {self.text_width})")
            return LoadedClip(row["clip_id"], picture, self.column == "latent", text, float(row["fps"]), size)
        except (TypeError, KeyError) as error:
            raise ValueError(f"its row makes no sense ({error})") from error

    def bytes_of(self, frames: int, height: int, width: int) -> int:
        """Memory that the picture of a clip of a bucket takes, decoded."""
        if self.column == "video":
            return frames * height * width * 3
        numbers = self.channels
        for count in self._latent_size(frames, height, width):
            numbers *= count
        return numbers * DTYPES.get(self.dtype, torch.float32).itemsize

    def _video(self, row: Mapping[str, Any]) -> Tensor:
        frames = decode_clip(row["video"], row["num_frames"])
        if frames.shape[1:3] != (row["height"], row["width"]):
            height, width = frames.shape[1:3]
            raise ValueError(f"it is {height}x{width}, its row says {row['height']}x{row['width']}")
        return torch.from_numpy(frames)

    def _latent(self, row: Mapping[str, Any]) -> Tensor:
        latent = unpack_tensor(row["latent"])
        wanted = (self.channels, *self._latent_size(row["num_frames"], row["height"], row["width"]))
        if latent.shape != wanted or latent.dtype != DTYPES.get(self.dtype):
            name = str(latent.dtype).removeprefix("torch.")
            raise ValueError(f"its latent is {name} {tuple(latent.shape)} and not {self.dtype} {wanted}")
        if not torch.isfinite(latent).all():
            raise ValueError("its latent has numbers that are not finite")
        return latent

    def _latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        time, rows, columns = self.strides
        return 1 + (frames - 1) // time, height // rows, width // columns


@dataclass(frozen=True)
class Batch:
    """Clips of one bucket."""

    video: Tensor | None
    """uint8 (B T H W 3) as decoded, or (B 3 T H W) in [-1, 1]; None where latents were loaded."""
    text: Tensor
    """(B L width), zero where the mask is False."""
    text_mask: Tensor
    """(B L)."""
    fps: Tensor
    """(B)."""
    size: Tensor
    """(B 2): height and width in pixels."""
    latent: Tensor | None = None
    """(B C T' H' W') in the dtype that was stored; None where videos were loaded."""

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {n: t if t is None else t.to(device, non_blocking=True) for n, t in vars(self).items()}
        return Batch(**moved)

    @property
    def pixels(self) -> Tensor:
        """The videos (B 3 T H W) in [-1, 1], made of what was decoded where the batch is: it moves in bytes."""
        assert self.video is not None
        return to_unit_range(self.video) if self.video.dtype == torch.uint8 else self.video

    def latents(self, vae: Autoencoder) -> Tensor:
        """The stored latents, else what ``vae`` makes of the videos: (B C T' H' W') fp32."""
        return vae.encode(self.pixels) if self.latent is None else self.latent.float()


class ClipLoader:
    """Loads clips of a curation run, as ``latents`` or as videos; keeps them in memory up to ``cache_bytes``."""

    def __init__(self, reader: ShardReader, cache_bytes: int, latents: bool = False) -> None:
        """Raises UserError when the run does not hold what is asked for."""
        self.reader = reader
        self._decoder = ClipDecoder.of(reader, latents)
        self._room = cache_bytes
        self._cache: dict[str, LoadedClip] = {}

    def load(self, entries: Sequence[ClipEntry]) -> list[LoadedClip]:
        """The clips in order. Raises Failure that names a clip which cannot be decoded."""
        missing = [e for e in dict.fromkeys(entries) if e.clip_id not in self._cache]
        rows = self.reader.read([e.address for e in missing], self._decoder.columns)
        fresh = {e.clip_id: self._decode(e, row) for e, row in zip(missing, rows, strict=True)}
        for clip_id, clip in fresh.items():
            if clip.nbytes <= self._room:
                self._room -= clip.nbytes
                self._cache[clip_id] = clip
        return [fresh.get(e.clip_id) or self._cache[e.clip_id] for e in entries]

    def batch(self, entries: Sequence[ClipEntry]) -> Batch:
        """The clips, which must share a bucket, as one batch."""
        return collate(self.load(entries))

    def _decode(self, entry: ClipEntry, row: dict[str, Any]) -> LoadedClip:
        try:
            return self._decoder.decode(row)
        except ValueError as error:
            shard = self.reader.manifest.shards[entry.address.shard].path
            raise Failure(f"clip {entry.clip_id} of {shard} is damaged: {error}; curate again") from error


def collate(clips: Sequence[LoadedClip], slots: Sequence[object] = ()) -> Batch:
    """Stack clips of one size; texts are padded to the longest. ``slots``, places in a training step, change nothing."""
    pictures = torch.stack([c.picture for c in clips])
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
