"""Frames as overlapping tiles, each coded alone, blended where they overlap: for frames too large to be coded at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, product, tee

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.vae.streams import Coder


class Tiling(Config):
    """Size of the tiles that frames are coded in."""

    size: int = Field(256, ge=1)
    """Rows and columns of pixels of a tile; frames no larger are coded whole."""
    overlap: int = Field(64, ge=1)
    """Rows and columns of pixels that neighbouring tiles share, at least; they are blended over them."""

    @model_validator(mode="after")
    def _check(self) -> Tiling:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be less than size {self.size}")
        return self

    def check(self, stride: tuple[int, int]) -> None:
        """Raise UserError when the tiles are no whole latents of ``stride`` rows and columns of pixels."""
        if any(n % s for n in (self.size, self.overlap) for s in stride):
            raise UserError(
                f"tiling: size {self.size} and overlap {self.overlap} must be multiples of the autoencoder's "
                f"{max(stride)} pixels per latent"
            )


Span = tuple[int, int]


def spans(total: int, size: int, overlap: int) -> list[Span]:
    """Where tiles of ``size`` begin and end along ``total``; the last is moved back to be of full size as well."""
    if total <= size:
        return [(0, total)]
    starts = [*range(0, total - size, size - overlap), total - size]
    return [(start, start + size) for start in starts]


@dataclass(frozen=True)
class Axis:
    """Tiles along rows or columns, in latents, and how many inputs and outputs a latent is."""

    spans: list[Span]
    overlap: int
    unit_in: int
    unit_out: int

    @property
    def total(self) -> int:
        """Of the output."""
        return self.spans[-1][1] * self.unit_out

    def input(self, span: Span) -> slice:
        return slice(span[0] * self.unit_in, span[1] * self.unit_in)

    def output(self, span: Span) -> slice:
        return slice(span[0] * self.unit_out, span[1] * self.unit_out)

    def weight(self, span: Span, like: Tensor) -> Tensor:
        """Of a tile's output in the blend: 1 inside, falling linearly over the overlap at sides that have a neighbour."""
        start, end = span[0] * self.unit_out, span[1] * self.unit_out
        reach = self.overlap * self.unit_out
        place = torch.arange(end - start, device=like.device, dtype=like.dtype) + 0.5
        weight = torch.ones_like(place)
        if start > 0:
            weight = torch.minimum(weight, place / reach)
        if end < self.total:
            weight = torch.minimum(weight, (end - start - place) / reach)
        return weight


def tiled(coder: Coder, tiling: Tiling, stride: tuple[int, int], encode: bool) -> Coder:
    """``coder`` on tiles: ``stride`` is rows and columns of pixels per latent, ``encode`` its direction.

    The tiles of a chunk are coded one after another, each tile by a coder of its own that remembers its own past.
    Raises UserError when the tiles are no whole latents.
    """
    tiling.check(stride)

    def run(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        iterator = iter(pieces)
        head = next(iterator, None)
        if head is None:
            return
        rows, columns = (
            _axis(n // s if encode else n, s, tiling, encode) for n, s in zip(head.shape[-2:], stride, strict=True)
        )
        tiles = list(product(rows.spans, columns.spans))
        # The coders go in step, so tee never holds more than the pieces of one chunk.
        copies = tee(chain([head], iterator), len(tiles))
        coded = [
            coder(_crops(copy, rows.input(row), columns.input(column)))
            for copy, (row, column) in zip(copies, tiles, strict=True)
        ]
        for parts in zip(*coded, strict=True):
            yield parts[0] if len(parts) == 1 else _blended(parts, tiles, rows, columns)

    return run


def _axis(latents: int, stride: int, tiling: Tiling, encode: bool) -> Axis:
    overlap = tiling.overlap // stride
    cuts = spans(latents, tiling.size // stride, overlap)
    return Axis(cuts, overlap, stride, 1) if encode else Axis(cuts, overlap, 1, stride)


def _crops(pieces: Iterable[Tensor], rows: slice, columns: slice) -> Iterator[Tensor]:
    for piece in pieces:
        yield piece[..., rows, columns]


def _blended(parts: tuple[Tensor, ...], tiles: list[tuple[Span, Span]], rows: Axis, columns: Axis) -> Tensor:
    """The weighted mean of what the tiles say of each pixel or latent."""
    first = parts[0]
    whole = first.new_zeros(*first.shape[:-2], rows.total, columns.total)
    weights = first.new_zeros(rows.total, columns.total)
    for part, (row, column) in zip(parts, tiles, strict=True):
        weight = rows.weight(row, part)[:, None] * columns.weight(column, part)
        whole[..., rows.output(row), columns.output(column)] += part * weight
        weights[rows.output(row), columns.output(column)] += weight
    return whole / weights
