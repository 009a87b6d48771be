"""Which bucket each pack is of, and how many packs of each bucket are among the first k.

Packs interleave evenly by a tree whose leaves are the buckets. Of the first k packs that reach a node with children of
weights a and b, ⌊k·a/(a + b) + ½⌋ go to the first child, so each node is at most half a pack away from the exact share.
Images and videos are the first fork, and below it the tree is Huffman's (1952), in which a bucket's errors add up to about
one pack and never to more than two. It takes whole numbers only: any k, also a large one, has its counts at once, exactly.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket

_FINE = 2**60
"""Weights are multiples of this part of all: finer than any run is long, and a machine's word."""
GROUPS = {"images": True, "videos": False}
"""Names that stand for many buckets, and whether these are of images."""


class _Fork(NamedTuple):
    """A node that is no leaf; nodes are numbered, the first ones being the leaves."""

    first: int
    second: int
    a: int
    """Weight of the first child."""
    both: int
    """Weight of both."""

    def to_first(self, count: int) -> int:
        """How many of the first ``count`` packs go to the first child."""
        return (2 * count * self.a + self.both) // (2 * self.both)

    def place(self, child: int, number: int) -> int:
        """Which pack here, from 0 on, is the child's ``number``-th, from 0 on."""
        twice = self.both * (2 * number + 1)
        if child == self.first:
            return -(-twice // (2 * self.a)) - 1
        return twice // (2 * (self.both - self.a))


class Mixing:
    """The endless sequence of packs."""

    def __init__(self, rates: Mapping[Bucket, Fraction]) -> None:
        """``rates`` are in proportion to the packs of each bucket, and not all 0; one of rate 0 never comes."""
        total = sum(rates.values())
        self.rates = {bucket: rate / total for bucket, rate in rates.items()}
        """Packs of a bucket among all: they add up to 1."""
        self._leaves = {bucket: leaf for leaf, bucket in enumerate(b for b, rate in self.rates.items() if rate)}
        weights = [max(1, round(self.rates[bucket] * _FINE)) for bucket in self._leaves]
        self._forks: dict[int, _Fork] = {}
        images = [leaf for bucket, leaf in self._leaves.items() if bucket.is_image]
        videos = [leaf for bucket, leaf in self._leaves.items() if not bucket.is_image]
        tops = [self._join(leaves, weights) for leaves in (videos, images) if leaves]
        self._top = self._join(tops, weights)
        self._above = {child: node for node, fork in self._forks.items() for child in (fork.first, fork.second)}

    def counts(self, packs: int) -> dict[Bucket, int]:
        """How many of the first ``packs`` packs are of each bucket."""
        at = [0] * (self._top + 1)
        at[self._top] = packs
        for node in reversed(self._forks):  # parents were made after their children
            fork = self._forks[node]
            at[fork.first] = fork.to_first(at[node])
            at[fork.second] = at[node] - at[fork.first]
        return {bucket: at[self._leaves[bucket]] if bucket in self._leaves else 0 for bucket in self.rates}

    def place(self, bucket: Bucket, number: int) -> int:
        """Where in the sequence the bucket's ``number``-th pack is, both from 0 on. Raises KeyError where none ever is."""
        node = self._leaves[bucket]
        while node != self._top:
            above = self._above[node]
            number = self._forks[above].place(node, number)
            node = above
        return number

    def _join(self, nodes: list[int], weights: list[int]) -> int:
        """One node above ``nodes``, whose ``weights`` are added to; the lightest are joined first."""
        heap = [(weights[node], node) for node in nodes]
        heapq.heapify(heap)
        while len(heap) > 1:
            (a, first), (b, second) = heapq.heappop(heap), heapq.heappop(heap)
            node = len(weights)
            self._forks[node] = _Fork(first, second, a, a + b)
            weights.append(a + b)
            heapq.heappush(heap, (a + b, node))
        return heap[0][1]


def clip_shares(clips: Mapping[Bucket, int], mix: Mapping[str, float]) -> dict[Bucket, Fraction]:
    """Share of each bucket in the clips that are trained on; they add up to 1.

    ``mix`` gives shares to the name of a bucket, and to "images" and "videos", which are those that have no share of their
    own. What it leaves goes to the buckets that it does not name, by how many ``clips`` they have. Raises UserError where
    that cannot be.
    """
    left = {bucket: Fraction(count) for bucket, count in clips.items()}
    names = {bucket.name: [bucket] for bucket in clips}
    asked: list[tuple[list[Bucket], Fraction]] = []
    for name in sorted(mix, key=lambda name: name in GROUPS):  # buckets before the groups that they are in
        share = Fraction(mix[name])
        if share < 0:
            raise UserError(f"batch.mix: the share of {name!r} is {mix[name]:g}: give one from 0 to 1")
        named = names.get(name) or [b for b in left if b.is_image == GROUPS.get(name)]
        if not named:
            raise UserError(_unknown(name, clips))
        asked.append((named, share))
        for bucket in named:
            left.pop(bucket, None)
    total = sum((share for _, share in asked), Fraction(0))
    if abs(total - 1) < Fraction(1, 10**6):  # decimals that add up to 1 in the recipe
        total = Fraction(1)
    if total > 1:
        raise UserError(f"batch.mix: its shares add up to {float(total):g}: lower them to 1 at most")
    if total < 1 and not left:
        raise UserError(f"batch.mix: it names all buckets, and its shares add up to {float(total):g}: raise them to 1")
    asked.append((list(left), 1 - total))
    shares = dict.fromkeys(clips, Fraction(0))
    for named, share in asked:
        of_all = sum(clips[bucket] for bucket in named)
        for bucket in named:
            shares[bucket] = share * clips[bucket] / of_all
    whole = sum(shares.values())
    return {bucket: share / whole for bucket, share in shares.items()}


def _unknown(name: str, clips: Mapping[Bucket, int]) -> str:
    if name in GROUPS:
        return f"batch.mix: there are no {name} without a share of their own: leave {name!r} out"
    known = [*GROUPS, *(bucket.name for bucket in clips)]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"batch.mix: no bucket is called {name!r}; {hint}"
