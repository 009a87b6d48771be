"""What a checkpoint is asked for: prompts and, for each, a seed of noise that training never draws from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from kineograph.synth.scene import COLOURS, DIRECTIONS, SHAPES


@dataclass(frozen=True)
class Prompt:
    """One sample to make."""

    text: str
    seed: int
    """Of its noise, 0 .. 2^31 - 1."""


def choose_prompts(count: int, seed: int, fixed: Sequence[str] = ()) -> list[Prompt]:
    """``count`` prompts: ``fixed`` in turn, or the synthetic world's grid in an order drawn by ``seed``.

    No prompt of the grid comes again before all 72 have come. The seeds are hashes of (seed, place), in a
    space of their own: training's noise is keyed by clip, so no sample starts from noise that was trained
    on.
    """
    texts = [fixed[i % len(fixed)] for i in range(count)] if fixed else grid_prompts(count, seed)
    return [Prompt(text, held_out_seed(seed, "sample", place)) for place, text in enumerate(texts)]


def grid_prompts(count: int, seed: int) -> list[str]:
    """``count`` captions of one moving object: the whole grid in a drawn order, then again in another one."""
    grid = [
        f"a {colour} {shape} moving {direction}" for colour, shape, direction in product(COLOURS, SHAPES, DIRECTIONS)
    ]
    rng = np.random.default_rng(held_out_seed(seed, "prompts"))
    rounds = -(-count // len(grid))
    return [grid[i] for _ in range(rounds) for i in rng.permutation(len(grid))][:count]


def held_out_seed(seed: int, *key: object) -> int:
    """A seed for evaluation that depends on ``seed`` and ``key`` alone, 0 .. 2^31 - 1."""
    text = "\x1f".join(str(part) for part in ("evaluation", seed, *key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
