"""STDiT: a transformer over spacetime patches of video latents, with attention factorised into space and time.

Sources: DiT (Peebles & Xie 2022), PixArt-α (Chen et al. 2023, adaLN-single), Open-Sora (Zheng et al. 2024, STDiT),
SD3 (Esser et al. 2024: pooled text in the modulation, QK-norm).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from kineograph.config import Config
from kineograph.models.layers import (
    MLP,
    Attention,
    ScalarEmbedding,
    modulate,
    rotary_angles,
    spatial_positions,
)
from kineograph.models.patches import padded_size, patchify, unpatchify


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
    position_base: float = 16.0
    """Coordinates of a frame run over this length (spatial_positions)."""

    @model_validator(mode="after")
    def _check(self) -> STDiTConfig:
        if self.width % self.heads or (self.width // self.heads) % 2 or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4, and of heads {self.heads} with an even quotient")
        if self.patch[0] != 1:
            raise ValueError("patch must cover one latent frame: timesteps are per frame")
        return self


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

    def forward(self, x: Tensor, shared: Tensor, text: Tensor, text_mask: Tensor, angles: Tensor) -> Tensor:
        """x (B T S D); ``shared`` (B T 9 D) is the modulation that all blocks share."""
        b, t, s, _ = x.shape
        modulation = (shared + self.modulation).unsqueeze(3)  # B T 9 1 D
        (
            spatial_shift, spatial_scale, spatial_gate,
            temporal_shift, temporal_scale, temporal_gate,
            mlp_shift, mlp_scale, mlp_gate,
        ) = modulation.unbind(2)  # each B T 1 D  # fmt: skip

        y = modulate(self.spatial_norm(x), spatial_shift, spatial_scale)
        y = self.spatial(y.flatten(0, 1)).unflatten(0, (b, t))  # B T S D
        x = x + spatial_gate * y

        y = modulate(self.temporal_norm(x), temporal_shift, temporal_scale).transpose(1, 2)  # B S T D
        y = self.temporal(y.flatten(0, 1), angles=angles).unflatten(0, (b, s)).transpose(1, 2)  # B T S D
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
        self.null_text = nn.Parameter(torch.zeros(config.text_width))  # stands for "no caption"
        self.shared_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))
        self.blocks = nn.ModuleList(
            STDiTBlock(width, config.heads, int(width * config.mlp_ratio)) for _ in range(config.depth)
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
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
            nn.init.normal_(embedding.mlp[0].weight, std=0.02)
            nn.init.normal_(embedding.mlp[2].weight, std=0.02)
        for layer in (self.shared_modulation[1], self.final_modulation[1], self.to_patches):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for block in self.blocks:
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
        places = spatial_positions(*grid, self.config.width, self.config.position_base, latents.device)

        x = self.embed_patches(patchify(latents, self.config.patch)) + places.to(latents.dtype)  # B T S D
        tokens, token_mask, pooled = self._text(text, text_mask)
        condition = self.embed_timestep(timestep * 1000) + (  # B T D
            pooled + self.embed_fps(fps) + self.embed_height(size[:, 0]) + self.embed_width(size[:, 1])
        ).unsqueeze(1)
        shared = self.shared_modulation(condition).unflatten(-1, (9, -1))  # B T 9 D
        angles = rotary_angles(torch.arange(frames, device=x.device), self.config.width // self.config.heads)

        for block in self.blocks:
            x = block(x, shared, tokens, token_mask, angles)

        shift, scale = self.final_modulation(condition).unsqueeze(2).chunk(2, dim=-1)  # B T 1 D
        x = self.to_patches(modulate(self.final_norm(x), shift, scale))
        return unpatchify(x, self.config.patch, (frames, height, width))

    def _text(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token states (B L+1 D), their mask, and the pooled caption (B D). The first token stands for "no caption" and
        is seen by the rows that have none."""
        empty = ~mask.any(dim=1)  # B
        null = self.null_text.to(text.dtype).expand(len(text), 1, -1)
        text = torch.cat([null, text], dim=1)  # B L+1 text_width
        mask = torch.cat([empty[:, None], mask], dim=1)
        weights = mask.to(text.dtype) / mask.sum(dim=1, keepdim=True)
        pooled = self.embed_pooled((weights[..., None] * text).sum(dim=1))
        return self.embed_text(text), mask, pooled
