"""Layers that the transformers share. Letters in trailing comments: B batch, N tokens, L text tokens of one caption,
M text tokens of all captions of a batch, D width, H heads, d width of a head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.models.positions import rotate, sinusoidal

varlen_attn: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
if torch.backends.cuda.is_built():  # it brings in torch's compiler: a second and a half, for nothing on a CPU
    with suppress(ImportError):  # before torch 2.10
        from torch.nn.attention.varlen import varlen_attn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x·(1 + scale) + shift, on normalised x (Peebles & Xie 2022, DiT)."""
    return x * (1 + scale) + shift


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without weights, which adaLN brings."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class _Heads(nn.Module):
    """The weights of attention, with QK-norm (RMS per head; Dehghani et al. 2023)."""

    def __init__(self, width: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)


class Attention(_Heads):
    """Self-attention over SDPA, with QK-norm and optional RoPE."""

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """x (B N D) attends to itself; ``angles`` (N d/2) rotate queries and keys."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H N d
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # B H N d
        query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(-2))  # B N D


class PackedTokens(NamedTuple):
    """The text tokens of a batch one after another, without padding: captions have different lengths, and most of a
    padded batch is air."""

    states: Tensor
    """(M D)."""
    starts: Tensor
    """(B + 1) int32: where each caption starts, and the end."""
    places: Tensor
    """(B L) for the longest caption's L: where each token stands in ``states``; 0 where there is none."""
    mask: Tensor
    """(B L): True where there is a token."""


def pack_tokens(states: Tensor, mask: Tensor) -> PackedTokens:
    """states (B L D) of which ``mask`` (B L) is True on tokens; every row must have one at least."""
    lengths = mask.sum(dim=1)
    starts = F.pad(lengths.cumsum(0), (1, 0))
    index = torch.arange(int(lengths.max()), device=mask.device)
    valid = index < lengths[:, None]
    places = torch.where(valid, starts[:-1, None] + index, 0)
    return PackedTokens(states[mask], starts.int(), places, valid)


class CrossAttention(_Heads):
    """Attention to the text over SDPA, with QK-norm."""

    def forward(self, x: Tensor, text: PackedTokens) -> Tensor:
        """x (B N D) attends to the tokens of its row's caption."""
        query = self.query_norm(self.query(x).unflatten(-1, (self.heads, -1)))  # B N H d
        key, value = self.key_value(text.states).unflatten(-1, (2, self.heads, -1)).unbind(1)  # M H d
        key = self.key_norm(key)
        if _has_ragged_kernel(value):
            attended = _attend_packed(query, key, value, text)
        else:
            # Padded only now, behind the projections; there is no kernel for ragged rows here.
            key, value = key[text.places].transpose(1, 2), value[text.places].transpose(1, 2)  # B H L d
            mask = text.mask[:, None, None]  # B 1 1 L
            attended = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask).transpose(1, 2)
        return self.out(attended.flatten(-2))  # B N D


def _has_ragged_kernel(value: Tensor) -> bool:
    """Whether attention to values (M H d) can run over ragged rows. Under autocast they, and not what the layer was given,
    are of the dtype that it runs in."""
    half, width = value.dtype in (torch.bfloat16, torch.float16), value.shape[-1]
    if varlen_attn is None or not value.is_cuda or not half or width % 8 or width > 256:
        return False
    return torch.cuda.get_device_capability(value.device) >= (8, 0)  # flash attention, from Ampere on


def _attend_packed(query: Tensor, key: Tensor, value: Tensor, text: PackedTokens) -> Tensor:
    """Flash attention over rows of different lengths: query (B N H d), key and value (M H d) to (B N H d)."""
    batch, length = query.shape[:2]
    assert varlen_attn is not None
    starts = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=query.device)
    packed = varlen_attn(
        query.flatten(0, 1).to(value.dtype), key.to(value.dtype), value, starts, text.starts, length, text.mask.shape[1]
    )
    assert isinstance(packed, Tensor)
    return packed.unflatten(0, (batch, length))


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError when ``width`` does not divide into ``heads``."""
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")


class MLP(nn.Module):
    """Two linear layers with tanh-GELU between; ``out`` channels come out, else as many as go in."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class ScalarEmbedding(nn.Module):
    """A real number per item (a timestep, a frame rate, a size) as a vector of ``width``: sinusoid, then an MLP."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.up = nn.Linear(features, width)
        self.down = nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        code = sinusoidal(value, self.features).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(code)))
