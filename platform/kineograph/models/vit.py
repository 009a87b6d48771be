"""ViT: an image classifier that is a plain transformer over patches.

Source: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words. Sizes tiny and S: Touvron et al. 2021, DeiT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.layers import Attention, check_heads
from kineograph.models.patches import patchify


class EncoderConfig(Config):
    """Shape of a transformer encoder."""

    width: int = Field(768, ge=1)
    """Channels of a token."""
    depth: int = Field(12, ge=1)
    """Blocks."""
    heads: int = Field(12, ge=1)
    """Attention heads, a divisor of width."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over width."""
    qk_norm: bool = False
    """Normalise queries and keys (Dehghani et al. 2023): steadier at high learning rates, and no ViT as published."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of channels dropped in training after the positions and in each branch of a block."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the variance in LayerNorm."""

    @model_validator(mode="after")
    def _check(self) -> EncoderConfig:
        check_heads(self.width, self.heads)
        return self


def count_patches(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis of ``size``, the last one padded where it does not divide."""
    return tuple(-(-n // p) for n, p in zip(size, patch, strict=True))


class ViTConfig(EncoderConfig):
    """Shape of a ViT."""

    kind: Literal["vit"] = "vit"
    size: tuple[int, int] = (224, 224)
    """Height and width of its images, pixels; others are taken too, with positions interpolated."""
    patch: tuple[int, int] = (16, 16)
    """Rows and columns of a patch."""

    @model_validator(mode="after")
    def _check_size(self) -> ViTConfig:
        if min(*self.size, *self.patch) < 1:
            raise ValueError("sides of size and patch are 1 or more")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of ``size``."""
        rows, columns = count_patches(self.size, self.patch)
        return rows, columns


class EncoderBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm. GELU is exact, as in published weights, where the diffusion
    transformers approximate it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(width, config.heads, qk_norm=config.qk_norm)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))  # B N D
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Encoder(nn.Module):
    """Tokens on a grid of one or two axes: a class token in front, learned positions, blocks, a last norm."""

    def __init__(self, config: EncoderConfig, depth: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.class_token = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + math.prod(grid), config.width))  # the class token's first
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Tokens x (B N D) of ``grid`` to states (B 1+N D), the class token's first."""
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        x = self.dropout(x + resize_positions(self.positions, self.grid, grid))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def start_from(self, other: Encoder) -> None:
        """Take the weights of ``other``, its positions interpolated to this grid."""
        state = other.state_dict()
        state["positions"] = resize_positions(other.positions, other.grid, self.grid)
        self.load_state_dict(state)


def resize_positions(positions: Tensor, grid: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """Positions (1+N D) learned on ``grid`` for the grid ``target``: linear on one axis, bicubic on two. The first, of the
    class token, stays."""
    if grid == target:
        return positions
    field = positions[1:].T.unflatten(1, grid)[None]  # 1 D rows columns
    field = F.interpolate(field, size=target, mode="linear" if len(grid) == 1 else "bicubic", align_corners=False)
    return torch.cat([positions[:1], field[0].flatten(1).T])


def initialise(model: nn.Module, head: nn.Linear) -> None:
    """Xavier for linear layers; a zero head, so that all classes are equally likely at first."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(head.weight)


class ViT(nn.Module):
    """Classifies images by the last state of a class token."""

    def __init__(self, config: ViTConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.embed_patches = nn.Linear(3 * math.prod(config.patch), config.width)
        self.encoder = Encoder(config, config.depth, config.grid)
        self.head = nn.Linear(config.width, classes)
        initialise(self, self.head)

    def features(self, images: Tensor) -> Tensor:
        """The class token's last, normalised state (B D) of images (B 3 H W) in [-1, 1] of any size, zero-padded to whole
        patches."""
        grid = count_patches(images.shape[2:], self.config.patch)
        patches = patchify(images[:, :, None], (1, *self.config.patch))[:, 0]  # B S patch·3
        return self.encoder(self.embed_patches(patches), grid)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B classes) of images (B 3 H W) in [-1, 1]."""
        return self.head(self.features(images))

    def start_from(self, other: ViT) -> None:
        """Take the weights of ``other`` but for its head; images may have another size. Raises UserError when the two
        differ in shape."""
        check_alike(self.config, other.config, ("width", "depth", "heads", "mlp_ratio", "qk_norm", "patch"))
        self.embed_patches.load_state_dict(other.embed_patches.state_dict())
        self.encoder.start_from(other.encoder)


def check_alike(config: Config, other: Config, fields: tuple[str, ...]) -> None:
    """Raise UserError that names the first of ``fields`` in which a model differs from the one it shall start from."""
    for field in fields:
        mine, its = getattr(config, field), getattr(other, field)
        if mine != its:
            raise UserError(f"the model to start from has {field} {its}, this one {mine}: make them equal")


SIZES = {"tiny": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
"""Width, depth and heads by name."""

VIT_PRESETS = {
    "vit-demo": ViTConfig(size=(32, 32), patch=(8, 8), width=128, depth=4, heads=4),
    **{
        f"vit-{name}/16": ViTConfig(width=width, depth=depth, heads=heads)
        for name, (width, depth, heads) in SIZES.items()
    },
}
"""Shapes by name: vit-demo learns 32x32 images on a CPU; the others are those of the papers."""


def read_transformers_vit(folder: str | Path) -> ViT:
    """A ViT that transformers saved (config.json and model.safetensors) as ours, in order to go on from published weights.
    Its head is zero where the folder has none. Raises UserError when it holds no such ViT."""
    folder = Path(folder)
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = {name.removeprefix("vit."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        if raw["model_type"] != "vit":
            raise UserError(f"{folder} holds a {raw['model_type']}, not a ViT: give the folder of a ViT")
        if raw["hidden_act"] != "gelu":
            raise UserError(f"{folder} holds a ViT with {raw['hidden_act']} where this one has GELU: give another")
        side, patch = raw["image_size"], raw["patch_size"]
        config = ViTConfig(
            size=(side, side),
            patch=(patch, patch),
            width=raw["hidden_size"],
            depth=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            mlp_ratio=raw["intermediate_size"] / raw["hidden_size"],
            norm_eps=raw["layer_norm_eps"],
        )
        model = ViT(config, len(state["classifier.bias"]) if "classifier.bias" in state else 1)
        model.load_state_dict(model.state_dict() | _from_transformers(state, config.depth))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} holds no ViT as transformers saves them: {reason}") from error
    return model.eval()


# Our names in a block, and those in what transformers saves.
_BLOCK_NAMES = {
    "attention_norm": "layernorm_before",
    "attention.query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp.0": "intermediate.dense",
    "mlp.3": "output.dense",
}


def _from_transformers(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our weights of a state dict that transformers saved. Raises KeyError that names a weight which is not there."""
    kernel = state["embeddings.patch_embeddings.projection.weight"]  # D 3 rows columns
    weights = {
        "embed_patches.weight": kernel.permute(0, 2, 3, 1).flatten(1),
        "embed_patches.bias": state["embeddings.patch_embeddings.projection.bias"],
        "encoder.class_token": state["embeddings.cls_token"].flatten(),
        "encoder.positions": state["embeddings.position_embeddings"][0],
    }
    for kind in ("weight", "bias"):
        weights[f"encoder.norm.{kind}"] = state[f"layernorm.{kind}"]
        if f"classifier.{kind}" in state:
            weights[f"head.{kind}"] = state[f"classifier.{kind}"]
        for index in range(depth):
            block = {our: state[f"encoder.layer.{index}.{name}.{kind}"] for our, name in _BLOCK_NAMES.items()}
            block["attention.key_value"] = torch.cat([block.pop("key"), block.pop("value")])
            weights |= {f"encoder.blocks.{index}.{name}.{kind}": tensor for name, tensor in block.items()}
    return weights
