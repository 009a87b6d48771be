"""Which clips are held out of training: a pure function of their source, so that every pipeline agrees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kineograph.store.shards import ClipEntry


def split_validation(clips: Sequence[ClipEntry], share: float) -> tuple[list[ClipEntry], list[ClipEntry]]:
    """(training, validation) clips. Whole sources are held out, chosen by a hash of their id and by nothing else."""
    held_out = [_source_share(c.source_id) < share for c in clips]
    return (
        [c for c, out in zip(clips, held_out, strict=True) if not out],
        [c for c, out in zip(clips, held_out, strict=True) if out],
    )


def _source_share(source_id: str) -> float:
    return int.from_bytes(hashlib.blake2b(source_id.encode(), digest_size=4).digest(), "big") / 2**32
