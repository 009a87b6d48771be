"""Clips that mean the same: neighbours by the cosine of their embeddings.

After Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication" (2023). Up
to EXACT_CLIPS all pairs are compared, block by block; beyond, only those within a cluster of spherical k-means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from kineograph.config import Config

# Clips up to which all pairs are compared: 100,000 of 512 numbers take 5e12 multiplications.
EXACT_CLIPS = 100_000
# Rows of a block: 2048 x 2048 cosines are 16 MB.
_BLOCK = 2048
# Clips of a cluster, on average, when there are too many to compare them all.
_CLUSTER_CLIPS = 10_000
_KMEANS_ROUNDS, _KMEANS_SAMPLES = 10, 256  # samples: of a cluster


class SemanticDuplicates(Config):
    """When two clips are so alike in meaning that one is enough. Needs the embeddings of the CLIP stage."""

    enabled: bool = False
    """Whether duplicates are looked for."""
    min_cosine: float = Field(0.95, gt=0, le=1)
    """Least cosine of two clips' embeddings, SemDeDup's 1 - epsilon. What it means depends on the model: look
    at pairs of your own data before you trust it."""


@dataclass(frozen=True)
class SemanticDuplicate:
    """``id`` is left out for ``of``, which is kept."""

    id: str
    of: str
    cosine: float


def semantic_duplicates(
    ids: Sequence[str],
    embeddings: np.ndarray,
    quality: Sequence[tuple[float, ...]],
    min_cosine: float,
    *,
    exact_clips: int = EXACT_CLIPS,
) -> list[SemanticDuplicate]:
    """The clips that have a better one, which is kept, at ``min_cosine`` or more, in order of id.

    Clips are taken in order of quality (the greater first, then the smaller id); one that is not near a kept
    clip is kept, the others name the nearest kept one. So no chain of neighbours leads away from what is kept.
    Memory beside the embeddings is a few blocks of cosines, whatever the number of pairs.

    Args:
        ids: a name for each clip, all different.
        embeddings: float32 (N, D), of length 1 or any other but 0.
        quality: a key for each clip.
        min_cosine: -1..1.
        exact_clips: clips up to which all pairs are compared; beyond, pairs in different clusters are missed.

    Raises ValueError when the lengths differ, an id is given twice or a row has no direction.
    """
    if not len(ids) == len(embeddings) == len(quality):
        raise ValueError(f"{len(ids)} ids, {len(embeddings)} embeddings and {len(quality)} qualities")
    if len(set(ids)) < len(ids):
        raise ValueError("two clips have one id")
    if not len(ids):
        return []
    order = sorted(range(len(ids)), key=lambda i: (*(-q for q in quality[i]), ids[i]))
    vectors = np.asarray(embeddings, np.float32)[order]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("an embedding is zero or not finite")
    vectors = vectors / length
    groups = [np.arange(len(ids))] if len(ids) <= exact_clips else _clusters(vectors)
    found = []
    for group in groups:
        for row, keeper, cosine in _greedy(vectors, group, min_cosine):
            found.append(SemanticDuplicate(ids[order[row]], ids[order[keeper]], cosine))
    return sorted(found, key=lambda one: one.id)


def _greedy(vectors: np.ndarray, group: np.ndarray, min_cosine: float) -> Iterator[tuple[int, int, float]]:
    """(row, kept row, cosine) of each row of ``group``, best first, that has a kept row near it."""
    kept = np.empty(0, np.int64)
    for start in range(0, len(group), _BLOCK):
        rows = group[start : start + _BLOCK]
        nearest, cosine = _nearest(vectors, rows, kept)
        mutual = vectors[rows] @ vectors[rows].T
        chosen: list[int] = []
        for place, row in enumerate(rows.tolist()):
            if chosen:
                here = mutual[place, chosen]
                best = int(here.argmax())
                if here[best] > cosine[place]:
                    nearest[place], cosine[place] = rows[chosen[best]], here[best]
            if cosine[place] >= min_cosine:
                yield row, int(nearest[place]), min(1.0, float(cosine[place]))
            else:
                chosen.append(place)
        kept = np.concatenate([kept, rows[chosen]])


def _nearest(vectors: np.ndarray, rows: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``rows`` the nearest row of ``among`` and its cosine; -1 and -2 when there is none."""
    nearest, cosine = np.full(len(rows), -1), np.full(len(rows), -2.0, np.float32)
    for start in range(0, len(among), _BLOCK):
        block = among[start : start + _BLOCK]
        cosines = vectors[rows] @ vectors[block].T
        best = cosines.argmax(axis=1)
        value = cosines[np.arange(len(rows)), best]
        better = value > cosine
        nearest[better], cosine[better] = block[best[better]], value[better]
    return nearest, cosine


def _clusters(vectors: np.ndarray) -> list[np.ndarray]:
    """Rows by cluster of a spherical k-means, each in ascending order."""
    number = -(-len(vectors) // _CLUSTER_CLIPS)
    rng = np.random.default_rng(0)
    size = min(len(vectors), max(_KMEANS_SAMPLES * number, _BLOCK))
    sample = vectors[np.sort(rng.choice(len(vectors), size, replace=False))]
    centres = sample[rng.choice(size, number, replace=False)]
    for _ in range(_KMEANS_ROUNDS):
        nearest = (sample @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-12), centres)
    blocks = range(0, len(vectors), _BLOCK)
    nearest = np.concatenate([(vectors[start : start + _BLOCK] @ centres.T).argmax(axis=1) for start in blocks])
    return [np.flatnonzero(nearest == cluster) for cluster in range(number)]
