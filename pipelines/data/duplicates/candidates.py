"""Which sources may share content, and shifted by how much: equal parts of hashes vote.

A hash is cut into blocks, and a table is sorted by each choice of some of them, after Manku et al., "Detecting
near-duplicates for web crawling" (2007): hashes that differ in at most ``BLOCKS - CHOSEN`` bits are neighbours
in at least one table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from pipelines.data.duplicates.distance import contrasts, layout_distance
from pipelines.data.duplicates.fingerprint import LAYOUT_SIZE, FingerprintArrays

# 20 tables, each sorted by 31 to 33 bits: two unlike samples of ten million rarely share those by chance.
BLOCKS, CHOSEN = 6, 3
# Bits of 64 in which two hashes that vote may differ. Samples of copies differ in 6 at most (95 %, measured).
MAX_BITS = 8
# Distance of the layouts, levels, up to which a pair of samples votes; the offset is not yet the best one.
NEAR = 10.0
# Entries of a bucket that each entry is paired with: those that follow it when the bucket is sorted by the
# rest of the hash, then by source. A bucket of boiler-plate costs no more per entry than a small one.
NEIGHBOURS = 16
# Seconds of a bin of offsets.
BIN_S = 0.5
# Best offsets of a pair of sources that are looked at.
MAX_OFFSETS = 6
_BIN_BITS, _SOURCE_BITS = 19, 22
_BITS_OF = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, np.uint8)


@dataclass(frozen=True)
class Candidate:
    """Two sources by their places in the list, ``a`` <= ``b``, that may share content."""

    a: int
    b: int
    offsets: tuple[float, ...]
    """Seconds to add to a time in ``a`` to come to the same picture in ``b``, most votes first."""


def candidates(prints: Sequence[FingerprintArrays], same_source: float = np.inf) -> list[Candidate]:
    """Pairs of ``prints`` with samples whose hashes are near, in order of (a, b).

    Costs O(n log n) in the number of samples: each takes part in at most tables x NEIGHBOURS pairs.

    Args:
        prints: their order settles which pairs of a full bucket are looked at: give one that is fixed.
        same_source: least seconds between samples of one source to make it a candidate with itself.

    Raises ValueError for more sources than 2**22.
    """
    if len(prints) >= 1 << _SOURCE_BITS:
        raise ValueError(f"{len(prints)} sources are too many to compare at once: at most {1 << _SOURCE_BITS}")
    samples = _samples(prints)
    keys, votes = np.empty(0, np.int64), np.empty(0, np.int64)
    sums: np.ndarray = np.empty(0)
    for bits, values in _tables(samples.hash):
        order = np.argsort(values, kind="stable")
        new, offsets = _votes(*_neighbours(order, values[order], bits), samples, same_source)
        counts = np.concatenate([votes, np.ones(len(new), np.int64)])
        keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
        sums = np.bincount(place, np.concatenate([sums, offsets]), len(keys))
        votes = np.bincount(place, counts, len(keys)).astype(np.int64)
    return _ranked(keys, votes, sums / np.maximum(votes, 1))


@dataclass(frozen=True)
class _Samples:
    """Samples of all sources, one after the other."""

    source: np.ndarray  # int64 (n,), place of the source
    seconds: np.ndarray  # float64 (n,)
    hash: np.ndarray  # uint64 (n,)
    layout: np.ndarray  # uint8 (n, K)
    contrast: np.ndarray  # float32 (n,)


def _samples(prints: Sequence[FingerprintArrays]) -> _Samples:
    """The samples that are evidence; of a run of equal hashes its two ends."""
    source, seconds, hashes = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.uint64)]
    layout = [np.empty((0, LAYOUT_SIZE), np.uint8)]
    for place, one in enumerate(prints):
        same = one.hash[1:] == one.hash[:-1]
        take = ~one.flat
        take[1:-1] &= ~(same[1:] & same[:-1])
        source.append(np.full(int(take.sum()), place, np.int64))
        seconds.append(one.seconds[take].astype(np.float64))
        hashes.append(one.hash[take])
        layout.append(one.layout[take])
    layouts = np.concatenate(layout)
    contrast = np.concatenate([contrasts(part) for part in layout])
    return _Samples(np.concatenate(source), np.concatenate(seconds), np.concatenate(hashes), layouts, contrast)


def _tables(hashes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For each choice of blocks its number of bits and the hashes with those blocks in front."""
    edges = np.linspace(0, 64, BLOCKS + 1).round().astype(int)
    spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    for chosen in combinations(range(BLOCKS), CHOSEN):
        value = np.zeros_like(hashes)
        for block in (*chosen, *(b for b in range(BLOCKS) if b not in chosen)):
            low, high = spans[block]
            part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
            value = (value << np.uint64(high - low)) | part
        yield sum(spans[b][1] - spans[b][0] for b in chosen), value


def _neighbours(order: np.ndarray, values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of entries that share their first ``bits`` of ``values``, which are sorted by ``order``."""
    bucket = values >> np.uint64(64 - bits)
    first, second = [], []
    for lag in range(1, NEIGHBOURS + 1):
        at = np.flatnonzero(bucket[lag:] == bucket[:-lag])
        at = at[_bit_count(values[at] ^ values[at + lag]) <= MAX_BITS]
        first.append(order[at])
        second.append(order[at + lag])
    return np.concatenate(first), np.concatenate(second)


def _bit_count(values: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    count: np.ndarray = _BITS_OF[values.view(np.uint16)].reshape(-1, 4).sum(axis=1)
    return count


def _votes(
    first: np.ndarray, second: np.ndarray, samples: _Samples, same_source: float
) -> tuple[np.ndarray, np.ndarray]:
    """Key of (a, b, bin of the offset) and the offset of each pair of samples whose layouts are near."""
    source, seconds = samples.source, samples.seconds
    swap = (source[first] > source[second]) | ((source[first] == source[second]) & (seconds[first] > seconds[second]))
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    offset = seconds[second] - seconds[first]
    use = np.flatnonzero((source[first] != source[second]) | (offset >= same_source))
    use = use[_near(first[use], second[use], samples)]
    first, second, offset = first[use], second[use], offset[use]
    limit = 1 << (_BIN_BITS - 1)
    bins = np.clip(np.floor(offset / BIN_S).astype(np.int64) + limit, 0, 2 * limit - 1)
    return ((source[first] << _SOURCE_BITS | source[second]) << _BIN_BITS) | bins, offset


def _near(first: np.ndarray, second: np.ndarray, samples: _Samples) -> np.ndarray:
    near = np.empty(len(first), bool)
    for start in range(0, len(first), 8192):  # bounds the memory of many pairs
        one, other = first[start : start + 8192], second[start : start + 8192]
        change = samples.layout[one].astype(np.float32) - samples.layout[other]
        contrast = np.minimum(samples.contrast[one], samples.contrast[other])
        near[start : start + 8192] = layout_distance(change, contrast) <= NEAR
    return near


def _ranked(keys: np.ndarray, votes: np.ndarray, offsets: np.ndarray) -> list[Candidate]:
    """The candidates of counted keys, each with its offsets."""
    pair = keys >> _BIN_BITS
    order = np.lexsort((keys, -votes, pair))
    pair, offsets = pair[order], offsets[order]
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    found = []
    for start, end in pairwise([*starts.tolist(), len(pair)]):
        chosen: list[float] = []
        for offset in offsets[start:end].tolist():
            if len(chosen) < MAX_OFFSETS and all(abs(offset - other) >= BIN_S / 2 for other in chosen):
                chosen.append(offset)
        key = int(pair[start])
        found.append(Candidate(key >> _SOURCE_BITS, key & ((1 << _SOURCE_BITS) - 1), tuple(chosen)))
    return found
