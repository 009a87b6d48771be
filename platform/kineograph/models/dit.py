"""DiT: a transformer over patches of image latents, each block steered by adaLN-zero (Peebles & Xie 2022).

Conditioned on a class, as published, or on text through cross-attention. The published weights load into it
(models/importing_dit.py). A video is a batch of images here: no frame sees another.

Letters in trailing comments: B batch, C channels of latents, T latent frames, S patches of an image, L text tokens,
D width.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.layers import (
    MLP,
    Attention,
    CrossAttention,
    PackedTokens,
    ScalarEmbedding,
    check_heads,
    layer_norm,
    modulate,
    pack_tokens,
)
from kineograph.models.patches import padded_size, patchify, unpatchify
from kineograph.models.positions import grid_coordinates, sincos_2d

LABEL_WIDTH = 2
"""Channels of a class told as a text token (:func:`label_tokens`)."""


class DiTShape(Config):
    """What a recipe says of a DiT; the channels of latents and text come from the autoencoder and the dataset."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(2, ge=1)
    """Rows and columns of a patch."""
    width: int = Field(1152, ge=4)
    """Channels of a token, a multiple of 4."""
    depth: int = Field(28, ge=1)
    """Blocks."""
    heads: int = Field(16, ge=1)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over width."""
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of patches at the size of training. Other sizes are told their places in its units."""
    condition: Literal["class", "text"] = "text"
    """What is asked for: a class, which joins the modulation, or a caption, to whose tokens every block attends."""
    num_classes: int = Field(1000, ge=1)
    """Classes, when it is a class. The label that follows the last stands for "no class"."""
    qk_norm: bool = False
    """RMS norm of queries and keys (Dehghani et al. 2023); the published models have none."""
    learn_sigma: bool = False
    """Twice the channels out: a variance behind the prediction, as the published models give."""

    @model_validator(mode="after")
    def _check(self) -> DiTShape:
        check_heads(self.width, self.heads)
        if self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4, for sines and cosines of rows and columns")
        if min(self.grid) < 1:
            raise ValueError(f"grid {list(self.grid)} must have a row and a column")
        return self


class DiTConfig(DiTShape):
    """A DiT for latents and text of given channels."""

    in_channels: int = Field(ge=1)
    """Channels of the latents."""
    text_width: int = Field(ge=1)
    """Channels of a text token state; LABEL_WIDTH with classes."""

    @model_validator(mode="after")
    def _check_text(self) -> DiTConfig:
        if self.condition == "class" and self.text_width != LABEL_WIDTH:
            raise ValueError(f"text_width {self.text_width} must be {LABEL_WIDTH} when the condition is a class")
        return self


class Captions(NamedTuple):
    """Text as a condition."""

    states: Tensor
    """(B L text_width)."""
    mask: Tensor
    """(B L): True on tokens. A row without any means "no caption"."""


def label_tokens(label: Tensor) -> Tensor:
    """Class labels (B), below 65,536, as one text token each (B 1 2), exact also in bfloat16: so a model of classes is
    trained, guided and sampled by what does it for text, and a masked token is "no class"."""
    return torch.stack([label // 256, label % 256], dim=-1).unsqueeze(1).float()


class DiTBlock(nn.Module):
    """Attention within the image, attention to the text if there is one, MLP; modulated by the condition."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.attention = Attention(width, heads, config.qk_norm)
        self.cross = CrossAttention(width, heads, config.qk_norm) if config.condition == "text" else None
        self.mlp = MLP(width, round(width * config.mlp_ratio))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, text: PackedTokens | None) -> Tensor:
        """x (B S D), condition (B D)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)  # 6 times B 1 D
        )
        x = x + gate * self.attention(modulate(layer_norm(x), shift, scale))
        if self.cross is not None:
            x = x + self.cross(x, text)
        return x + mlp_gate * self.mlp(modulate(layer_norm(x), mlp_shift, mlp_scale))


class DiT(nn.Module):
    """From noisy image latents, a timestep and a class or a caption to what the diffusion process asks for."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed_patches = nn.Linear(config.in_channels * config.patch**2, width)
        self.embed_timestep = ScalarEmbedding(width)
        if config.condition == "class":
            self.embed_label = nn.Embedding(config.num_classes + 1, width)  # the last stands for "no class"
        else:
            self.embed_text = nn.Linear(config.text_width, width)
            self.null_text = nn.Parameter(torch.zeros(1, config.text_width))  # stands for "no caption"
        self.positions: Tensor  # S D, of the grid of training: published weights bring theirs
        self.register_buffer("positions", self._compute_positions(config.grid))
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.to_patches = nn.Linear(width, config.in_channels * (2 if config.learn_sigma else 1) * config.patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for linear layers; zero where a branch meets the trunk (adaLN-zero), so that every block starts as the
        identity and the first output is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.embed_timestep.up, self.embed_timestep.down):
            nn.init.normal_(layer.weight, std=0.02)
        if self.config.condition == "class":
            nn.init.normal_(self.embed_label.weight, std=0.02)
        else:
            nn.init.normal_(self.null_text, std=0.02)
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            nn.init.zeros_(block.modulation.weight)
            if block.cross is not None:
                nn.init.zeros_(block.cross.out.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.to_patches.weight)

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor, size: Tensor
    ) -> Tensor:
        """The call of every denoiser: (B C T H W), with learn_sigma (B 2C T H W).

        latents (B C T H W), any H and W; timestep (B T), 0 = data .. 1000 = noise; text (B L text_width) with
        ``text_mask`` (B L) True on tokens, a row without tokens meaning "no caption"; with classes text is
        :func:`label_tokens`. ``fps`` (B) and ``size`` (B 2) say nothing of an image and are not read.
        """
        batch, _, frames = latents.shape[:3]
        images = latents.transpose(1, 2).flatten(0, 1)  # B·T C H W
        condition: Tensor | Captions
        if self.config.condition == "class":
            condition = _labels(text, text_mask, self.config.num_classes).repeat_interleave(frames)
        else:
            condition = Captions(text.repeat_interleave(frames, 0), text_mask.repeat_interleave(frames, 0))
        output = self.forward_images(images, timestep.flatten(), condition)
        return output.unflatten(0, (batch, frames)).transpose(1, 2)

    def forward_images(self, latents: Tensor, timestep: Tensor, condition: Tensor | Captions) -> Tensor:
        """The published call: (B C H W), with learn_sigma (B 2C H W).

        latents (B C H W), any H and W, padded with zeros to whole patches; timestep (B), 0 = data .. 1000 = noise;
        condition: labels (B), num_classes meaning "no class", or captions.
        """
        height, width = latents.shape[2:]
        patch = (1, self.config.patch, self.config.patch)
        _, rows, columns = padded_size((1, height, width), patch)
        places = self._positions((rows // patch[1], columns // patch[2]))
        x = self.embed_patches(patchify(latents.unsqueeze(2), patch).squeeze(1)) + places.to(latents.dtype)  # B S D
        embedding, text = self.embed_timestep(timestep), None  # B D
        if isinstance(condition, Captions):
            text = self._embed_text(condition)
        else:
            embedding = embedding + self.embed_label(condition)
        embedding = F.silu(embedding)
        for block in self.blocks:
            x = block(x, embedding, text)
        shift, scale = self.final_modulation(embedding).unsqueeze(1).chunk(2, dim=-1)  # B 1 D
        x = self.to_patches(modulate(layer_norm(x), shift, scale))
        return unpatchify(x.unsqueeze(1), patch, (1, height, width)).squeeze(2)

    def check_labels(self, text: Tensor, text_mask: Tensor) -> None:
        """Raise UserError when tokens (B 1 2) of a model of classes name one that it does not have."""
        if self.config.condition == "class" and bool(text_mask.any()):
            most = int(_labels(text[text_mask.any(dim=1)], text_mask[text_mask.any(dim=1)], 0).max())
            if most >= self.config.num_classes:
                raise UserError(f"this model has the classes 0 to {self.config.num_classes - 1}, and not {most}")

    def _embed_text(self, captions: Captions) -> PackedTokens:
        """Packed tokens; a row without any sees the one that stands for "no caption"."""
        states, mask = captions
        null = self.null_text.to(states.dtype).expand(len(states), -1, -1)  # B 1 text_width
        present = torch.cat([~mask.any(dim=1, keepdim=True), mask], dim=1)  # B L+1
        tokens = pack_tokens(torch.cat([null, states], dim=1), present)
        return tokens._replace(states=self.embed_text(tokens.states))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return self.positions if grid == self.config.grid else self._compute_positions(grid).to(self.positions)

    def _compute_positions(self, grid: tuple[int, int]) -> Tensor:
        """Codes (S D) of the patches of any grid: its middle is the middle of the grid of training, and its area, in
        units of the code, the same."""
        trained = self.config.grid
        rows, columns = grid_coordinates("centred", *grid, math.sqrt(math.prod(trained)), torch.device("cpu"))
        return sincos_2d(rows + (trained[0] - 1) / 2, columns + (trained[1] - 1) / 2, self.config.width)


def _labels(tokens: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """The inverse of :func:`label_tokens`: (B); ``num_classes`` where ``mask`` (B 1) has no token."""
    high, low = tokens[:, 0].float().round().long().unbind(-1)
    return torch.where(mask.any(dim=1), 256 * high + low, num_classes)
