"""Into how many micro-batches each stretch of a step is cut, for ranks to be through with every round together.

Under ZeRO 2 and 3 ranks wait for each other in every backward pass: a step takes the sum over rounds of the longest
micro-batch. So the micro-batches are to be as many as ranks times rounds, and, in order of their lengths, as many as there
are ranks are to be alike. Stretches are cut into pieces of nearly equal size, no longer than some length T, and those of
cheap clips, which can be cut anywhere, into shorter ones that make up one round together. Some T and numbers of rounds are
tried, and the best is taken.

All numbers are whole: every rank works this out for itself, and all must find the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_LONGER = np.array([64, 65, 66, 68, 70, 74, 80, 96], np.int64)
"""Lengths T that are tried: 64ths of the least one that allows so many rounds."""
_MORE, _TIMES = np.array([0, 1, 2, 3, 4, 8], np.int64), np.array([3, 4, 8], np.int64)
"""Numbers of rounds that are tried: the fewest and so many more, and halves of the fewest so many times."""
_FINE = 4096
"""Part of a length that it is found to."""
_A_ROUND = 1024
"""Part of a step that a further round must gain."""


class Cut(NamedTuple):
    """Numbers of clips and their costs, arrays by stretch, the cheapest clips first."""

    clips: np.ndarray
    most: np.ndarray
    """Clips of a piece, at most."""
    each: np.ndarray
    """Length of a clip, above 0."""
    overhead: np.ndarray
    """Length of a piece besides its clips."""


def cut(parts: Cut, ranks: int) -> np.ndarray:
    """How many pieces each stretch is cut into. They add up to a multiple of ``ranks``, if there are clips enough."""
    fewest = -(-int((-(-parts.clips // parts.most)).sum()) // ranks)
    rounds = np.unique(np.concatenate([fewest + _MORE, fewest * _TIMES // 2]))
    rounds = rounds[(rounds - fewest) * ranks < parts.clips.sum()]
    everywhere = np.full(len(rounds), len(parts.clips))
    least = _shortest(lambda longest: _pieces(parts, longest), parts, everywhere, rounds * ranks)
    longest = (least[:, None] * _LONGER // _LONGER[0]).ravel()
    rounds = np.repeat(rounds, len(_LONGER))
    pieces = _fill_up(parts, _pieces(parts, longest), rounds * ranks, ranks)
    a_round = int((parts.clips * parts.each).sum()) // ranks // _A_ROUND
    return pieces[(step_lengths(parts, pieces, ranks) + rounds * a_round).argmin()]


def step_lengths(parts: Cut, pieces: np.ndarray, ranks: int) -> np.ndarray:
    """(choices): sums over rounds of the longest piece, where each round has the ``ranks`` longest that are left.

    ``pieces`` is (choices, stretches).
    """
    small, larger = np.divmod(parts.clips, pieces)
    lengths = parts.overhead + np.concatenate([small + 1, small], axis=1).reshape(len(pieces), 2, -1) * parts.each
    lengths = lengths.reshape(len(pieces), -1)
    number = np.concatenate([larger, pieces - larger], axis=1)
    order = np.argsort(-lengths, axis=1, kind="stable")
    lengths, number = np.take_along_axis(lengths, order, axis=1), np.take_along_axis(number, order, axis=1)
    end = np.cumsum(number, axis=1)
    # Rounds that begin within a run of equal pieces: places that are multiples of ``ranks``.
    begins = -(-end // ranks) - -(-(end - number) // ranks)
    return (lengths * begins).sum(1)


def _pieces(parts: Cut, longest: np.ndarray) -> np.ndarray:
    """(choices, stretches): the fewest pieces that are no longer than ``longest`` (choices), or have one clip."""
    clips = np.minimum(np.maximum((longest[:, None] - parts.overhead) // parts.each, 1), parts.most)
    return -(-parts.clips // clips)


def _shortest(
    pieces_of: Callable[[np.ndarray], np.ndarray], parts: Cut, width: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """(choices): about the least length for which ``pieces_of`` it, (choices, stretches), are no more than ``most`` in the
    first ``width`` stretches."""
    low = np.zeros(len(most), np.int64)
    high = np.full(len(most), int((parts.overhead + parts.most * parts.each).max()), np.int64)
    among = np.arange(len(parts.clips)) < width[:, None]
    while ((high - low) > high // _FINE + 1).any():
        middle = (low + high) // 2
        fits = (pieces_of(middle) * among).sum(1) <= most
        high, low = np.where(fits, middle, high), np.where(fits, low, middle)
    return high


def _fill_up(parts: Cut, pieces: np.ndarray, wanted: np.ndarray, ranks: int) -> np.ndarray:
    """``pieces`` with as many more as are ``wanted`` (choices) in all, where there are clips for it.

    The cheapest stretches, as many as make up a round with them, are cut into pieces of equal length.
    """
    missing = wanted - pieces.sum(1)
    after = np.cumsum(pieces, axis=1) + missing[:, None]
    are_few = (after < ranks) | (after > np.cumsum(parts.clips))
    width = np.minimum(are_few.sum(1) + 1, len(parts.clips))
    of_round = np.take_along_axis(after, width[:, None] - 1, axis=1)[:, 0]

    def shorter(length: np.ndarray) -> np.ndarray:
        equal = -(-parts.clips * parts.each // np.maximum(length[:, None] - parts.overhead, 1))
        return np.maximum(pieces, np.minimum(equal, parts.clips))

    among = np.arange(len(parts.clips)) < width[:, None]
    pieces = np.where(among, shorter(_shortest(shorter, parts, width, of_round)), pieces)
    while True:  # some are left, as lengths are about the least: the longest pieces are cut for them
        missing = wanted - pieces.sum(1)
        length = np.where(pieces < parts.clips, -(-parts.clips * parts.each // pieces), 0)
        place = np.argsort(np.argsort(-length, axis=1, kind="stable"), axis=1, kind="stable")
        more = (place < missing[:, None]) & (length > 0)
        if not more.any():
            return pieces
        pieces = pieces + more
