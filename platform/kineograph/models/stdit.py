"""STDiT: a transformer over spacetime patches of video latents, with attention factorised into space and time.

Sources: DiT (Peebles & Xie 2022), PixArt-α (Chen et al. 2023, adaLN-single), Open-Sora (Zheng et al. 2024, STDiT),
SD3 (Esser et al. 2024: pooled text in the modulation, QK-norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.config import Config
from kineograph.models.layers import (
    MLP,
    Attention,
    ScalarEmbedding,
    grid_coordinates,
    modulate,
    rotary_angles,
    spatial_positions,
)
from kineograph.models.patches import padded_size, patchify, unpatchify

LEAST_TIMESTEP = 0.05
"""Below it the division by t stops growing: clean latents are not asked to be exact to more than the noise that is left."""


class STDiTConfig(Config):
    """Shape of an STDiT."""

    kind: Literal["stdit"] = "stdit"
    in_channels: int
    """Channels of the latents."""
    text_width: int
    """Channels of a text token state."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows, columns of a patch. One frame, so that every frame has a timestep of its own."""
    width: int = 1152
    """Channels of a token."""
    depth: int = 28
    """Blocks."""
    heads: int = 16
    """Attention heads; width / heads must be even."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over width."""
    prediction: Literal["clean", "velocity"] = "clean"
    """What the last layer says: clean latents, which lie on few dimensions where noise fills them all (Li & He 2025,
    Back to Basics), or the velocity itself. The model returns the velocity either way."""
    position_base: float = 8.0
    """Side of a square frame in the units of position codes (grid_coordinates)."""

    @model_validator(mode="after")
    def _check(self) -> STDiTConfig:
        check_shape(self.width, self.heads, self.patch)
        return self


def check_shape(width: int, heads: int, patch: tuple[int, int, int]) -> None:
    """Raise ValueError when an STDiT cannot have this width, number of heads and patch."""
    if width % (4 * heads):
        raise ValueError(f"width {width} must be a multiple of 4·heads, and heads is {heads}")
    if patch[0] != 1 or min(patch) < 1:
        raise ValueError(f"patch {list(patch)} must cover one latent frame: timesteps are per frame")


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
        gains = (variances.clamp_min(0) + self.floor * variances[-1]).rsqrt()
        self.pooled_mean.copy_(pooled.mean(0))
        self.whitening.copy_(axes * gains @ axes.T)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """states (B L width) with ``mask`` (B L) to standardised states and the pooled caption (B width), zero for a row
        without tokens."""
        states = (states - self.mean) / self.std
        weights = mask.to(states.dtype) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        pooled = ((weights[..., None] * states).sum(dim=1) - self.pooled_mean) @ self.whitening
        return states, pooled * mask.any(dim=1, keepdim=True)


class Angles(NamedTuple):
    """Rotary angles of places in a frame (S d/2) and of frames (T d/2). With them the modulation can aim attention in a
    direction: "what is now to the right of here"."""

    spatial: Tensor
    temporal: Tensor


class STDiTBlock(nn.Module):
    """Attention within a frame, attention of each place over time, attention to the text, MLP."""

    def __init__(self, width: int, heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.spatial_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.spatial = Attention(width, heads)
        self.temporal_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.temporal = Attention(width, heads)
        self.cross = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width, mlp_hidden)
        self.modulation = nn.Parameter(torch.randn(9, width) / width**0.5)  # adaLN-single: the block's own offset

    def forward(self, x: Tensor, shared: Tensor, text: Tensor, text_mask: Tensor, angles: Angles) -> Tensor:
        """x (B T S D); ``shared`` (B T 9 D) is the modulation that all blocks share."""
        b, t, s, _ = x.shape
        modulation = (shared + self.modulation).unsqueeze(3)  # B T 9 1 D
        (
            spatial_shift, spatial_scale, spatial_gate,
            temporal_shift, temporal_scale, temporal_gate,
            mlp_shift, mlp_scale, mlp_gate,
        ) = modulation.unbind(2)  # each B T 1 D  # fmt: skip

        y = modulate(self.spatial_norm(x), spatial_shift, spatial_scale)
        y = self.spatial(y.flatten(0, 1), angles=angles.spatial).unflatten(0, (b, t))  # B T S D
        x = x + spatial_gate * y

        y = modulate(self.temporal_norm(x), temporal_shift, temporal_scale).transpose(1, 2)  # B S T D
        y = self.temporal(y.flatten(0, 1), angles=angles.temporal).unflatten(0, (b, s)).transpose(1, 2)  # B T S D
        x = x + temporal_gate * y

        x = x + self.cross(x.flatten(1, 2), context=text, mask=text_mask).unflatten(1, (t, s))

        y = modulate(self.mlp_norm(x), mlp_shift, mlp_scale)
        return x + mlp_gate * self.mlp(y)


class STDiT(nn.Module):
    """Predicts the flow's velocity for noisy latents, given text, a timestep per frame, frame rate and size."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        patch_volume = config.patch[0] * config.patch[1] * config.patch[2]
        self.embed_patches = nn.Linear(config.in_channels * patch_volume, width)
        self.embed_timestep = ScalarEmbedding(width)
        self.embed_fps = ScalarEmbedding(width)
        self.embed_height = ScalarEmbedding(width)
        self.embed_width = ScalarEmbedding(width)
        self.embed_text = nn.Linear(config.text_width, width)
        self.embed_pooled = nn.Sequential(nn.Linear(config.text_width, width), nn.SiLU(), nn.Linear(width, width))
        self.text_norm = TextNorm(config.text_width)
        self.null_text = nn.Parameter(torch.zeros(config.text_width))  # stands for "no caption"
        self.shared_modulation = nn.Linear(width, 9 * width)
        self.blocks = nn.ModuleList(
            STDiTBlock(width, config.heads, int(width * config.mlp_ratio)) for _ in range(config.depth)
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.to_patches = nn.Linear(width, config.in_channels * patch_volume)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for linear layers; zero where a branch meets the trunk, so that training starts from the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.null_text, std=0.02)
        for embedding in (self.embed_timestep, self.embed_fps, self.embed_height, self.embed_width):
            nn.init.normal_(embedding.up.weight, std=0.02)
            nn.init.normal_(embedding.down.weight, std=0.02)
        for layer in (self.shared_modulation, self.final_modulation, self.to_patches):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for block in self.blocks:
            assert isinstance(block, STDiTBlock)
            nn.init.zeros_(block.cross.out.weight)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor,
        fps: Tensor,
        size: Tensor,
    ) -> Tensor:
        """Velocity (B C T H W).

        latents (B C T H W); timestep (B T) in [0, 1], 0 = data, 1 = noise; text (B L text_width) with ``text_mask``
        (B L) True on tokens, a row without tokens meaning "no caption"; fps (B) frames per second, 0 for images;
        size (B 2) height and width in pixels.
        """
        frames, height, width = latents.shape[2:]
        _, padded_height, padded_width = padded_size((frames, height, width), self.config.patch)
        grid = padded_height // self.config.patch[1], padded_width // self.config.patch[2]
        rows, columns = grid_coordinates(*grid, self.config.position_base, latents.device)
        places = spatial_positions(rows, columns, self.config.width).to(latents.dtype)
        head_width = self.config.width // self.config.heads
        angles = Angles(
            torch.cat([rotary_angles(c, head_width // 2) for c in (rows, columns)], dim=-1),
            rotary_angles(torch.arange(frames, device=latents.device), head_width),
        )

        x = self.embed_patches(patchify(latents, self.config.patch)) + places  # B T S D
        tokens, token_mask, pooled = self._text(text, text_mask)
        condition = self.embed_timestep(timestep * 1000) + (  # B T D
            pooled + self.embed_fps(fps) + self.embed_height(size[:, 0]) + self.embed_width(size[:, 1])
        ).unsqueeze(1)
        condition = F.silu(condition)
        shared = self.shared_modulation(condition).unflatten(-1, (9, -1))  # B T 9 D

        for block in self.blocks:
            x = block(x, shared, tokens, token_mask, angles)

        shift, scale = self.final_modulation(condition).unsqueeze(2).chunk(2, dim=-1)  # B T 1 D
        x = self.to_patches(modulate(self.final_norm(x), shift, scale))
        output = unpatchify(x, self.config.patch, (frames, height, width))  # B C T H W
        if self.config.prediction == "velocity":
            return output
        # x_t = (1 - t)·x_0 + t·ε, so v = ε - x_0 = (x_t - x_0) / t.
        return (latents - output) / timestep.clamp_min(LEAST_TIMESTEP)[:, None, :, None, None]

    def _text(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token states (B L+1 D), their mask, and the pooled caption (B D). The first token stands for "no caption" and
        is seen by the rows that have none."""
        empty = ~mask.any(dim=1)  # B
        states, pooled = self.text_norm(text, mask)
        null = self.null_text.to(text.dtype).expand(len(text), 1, -1)
        tokens = self.embed_text(torch.cat([null, states], dim=1))  # B L+1 D
        return tokens, torch.cat([empty[:, None], mask], dim=1), self.embed_pooled(pooled)
