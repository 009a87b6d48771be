"""Latents of unit variance: a shift and a scale per channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kineograph.errors import UserError

SMALLEST_SCALE = 1e-5
"""A channel that varies less is one that the decoder does not read; it stays small."""


class LatentNorm(nn.Module):
    """z' = (z - shift) / scale, per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def normalise(self, latents: Tensor) -> Tensor:
        """(B C T H W), as the model has them, to unit variance."""
        return (latents - _per_channel(self.shift)) / _per_channel(self.scale)

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return latents * _per_channel(self.scale) + _per_channel(self.shift)

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Take mean and deviation over ``latents``, each (B C T H W) of any size, as the model has them.

        Raises UserError when there are fewer than two values per channel.
        """
        count = 0
        mean = torch.zeros(self.shift.shape, dtype=torch.float64)
        squares = torch.zeros_like(mean)  # of deviations from the mean: Chan et al. 1983, which adds up batch by batch
        for batch in latents:
            values = batch.transpose(0, 1).flatten(1).double().cpu()  # C N
            n, batch_mean = values.shape[1], values.mean(1)
            delta = batch_mean - mean
            squares += (values - batch_mean[:, None]).square().sum(1) + delta.square() * count * n / (count + n)
            mean += delta * n / (count + n)
            count += n
        if count < 2:
            raise UserError("the autoencoder's latents need at least two values per channel to be fitted")
        self.shift.copy_(mean)
        self.scale.copy_((squares / count).sqrt().clamp_min(SMALLEST_SCALE))


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None, None]
