"""What captions of one dataset have in common, taken out of their states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TextNorm(nn.Module):
    """Takes out of text states what all captions of a dataset share, so that what tells them apart weighs the same.

    In a sentence encoder's states "left" and "right" differ by a small part of their length. Tokens are standardised
    per channel; the pooled caption is whitened (Su et al. 2021, Whitening Sentence Representations), with directions
    of less than ``floor`` of the largest variance held down. Until it is fitted it changes nothing.
    """

    floor = 3e-3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.pooled_mean: Tensor
        self.whitening: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("pooled_mean", torch.zeros(width))
        self.register_buffer("whitening", torch.eye(width))

    @torch.no_grad()
    def fit(self, captions: Sequence[Tensor]) -> None:
        """Fit to the states (L width) of different captions. A single caption leaves the norm as it is."""
        if len(captions) < 2:
            return
        tokens = torch.cat(list(captions)).double()
        self.mean.copy_(tokens.mean(0))
        self.std.copy_(tokens.std(0).clamp_min(1e-3))
        pooled = torch.stack([((c - self.mean) / self.std).mean(0) for c in captions]).double()
        variances, axes = torch.linalg.eigh(torch.cov(pooled.T))
        self.pooled_mean.copy_(pooled.mean(0))
        if variances[-1] > 1e-6:  # else all captions are alike
            gains = (variances.clamp_min(0) + self.floor * variances[-1]).rsqrt()
            self.whitening.copy_(axes * gains @ axes.T)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """states (B L width) with ``mask`` (B L) to standardised states and the pooled caption (B width), zero for a row
        without tokens."""
        states = (states - self.mean) / self.std
        weights = mask.to(states.dtype) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        pooled = ((weights[..., None] * states).sum(dim=1) - self.pooled_mean) @ self.whitening
        return states, pooled * mask.any(dim=1, keepdim=True)
