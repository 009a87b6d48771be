"""Token states kept on disk by the text they are of.

FOLDER/FINGERPRINT/ab/abcd….states      one caption, named by its SHA-256: the SHA-256 of what follows, then an .npy
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kineograph.errors import UserError
from kineograph.models.text.interface import TextEncoder
from kineograph.store.commit import committed

SUFFIX = ".states"
_DIGEST_BYTES = hashlib.sha256().digest_size


class CacheSize(NamedTuple):
    """What a cache holds."""

    captions: int
    bytes: int


class CachedEncoder:
    """An encoder that never encodes a caption twice, in any process that uses the same folder.

    A caption's states are one file, under the encoder's fingerprint: another model, max_tokens or dtype finds none of
    them. Files appear whole; one that is damaged is made again. Nothing is ever deleted: look at :meth:`size`, and
    delete the folder when it is too much. Several processes may share it; at worst they encode the same caption.
    """

    def __init__(self, encoder: TextEncoder, folder: str | Path) -> None:
        self.encoder = encoder
        self.name = encoder.name
        self.width = encoder.width
        self.max_tokens = encoder.max_tokens
        self.folder = Path(folder) / encoder.fingerprint[:32]

    @property
    def fingerprint(self) -> str:
        """The encoder's own."""
        return self.encoder.fingerprint

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens, width) per caption; those that are not kept are encoded in one call.

        Raises UserError when the folder cannot be written, DiskFullError when the disk is full.
        """
        states = {caption: self._read(caption) for caption in dict.fromkeys(captions)}
        missing = [caption for caption, kept in states.items() if kept is None]
        found = dict(zip(missing, self.encoder.encode(missing), strict=True)) if missing else {}
        for caption, made in found.items():
            self._write(caption, made)
        kept_or_made = {caption: found[caption] if kept is None else kept for caption, kept in states.items()}
        return [kept_or_made[caption] for caption in captions]

    def size(self) -> CacheSize:
        """How many captions this encoder has in the folder, and their bytes."""
        sizes = [path.stat().st_size for path in self.folder.glob(f"??/*{SUFFIX}")]
        return CacheSize(len(sizes), sum(sizes))

    def path(self, caption: str) -> Path:
        """Where the states of ``caption`` are kept."""
        name = hashlib.sha256(caption.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _read(self, caption: str) -> np.ndarray | None:
        """The states of ``caption``; None when there are none that are whole."""
        try:
            data = self.path(caption).read_bytes()
        except OSError:
            return None
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        states: np.ndarray = np.load(io.BytesIO(body), allow_pickle=False)
        return states

    def _write(self, caption: str, states: np.ndarray) -> None:
        body = io.BytesIO()
        np.save(body, states, allow_pickle=False)
        try:
            # Not durable: the digest finds what a power cut spoilt.
            with committed(self.path(caption), durable=False) as temp:
                temp.write_bytes(hashlib.sha256(body.getvalue()).digest() + body.getvalue())
        except OSError as error:
            raise UserError(
                f"the text cache {self.folder} cannot be written ({error.strerror}): give another"
            ) from error
