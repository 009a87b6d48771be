"""STDiT: a transformer over spacetime patches of video latents, with attention factorised into space and time.

One model, three layouts: our own (the default), Open-Sora v1 and Open-Sora v1.2's STDiT3, whose published weights load
into it (models/importing.py). Sources: DiT (Peebles & Xie 2022), PixArt-α (Chen et al. 2023, adaLN-single), Open-Sora
(Zheng et al. 2024, STDiT), SD3 (Esser et al. 2024: pooled text in the modulation, QK-norm), CogVideoX (Yang et al. 2024,
3D RoPE).

Letters in trailing comments: B batch, C channels of latents, T latent frames, S patches per frame, L text tokens, D width,
d width of a head.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.config import Config
from kineograph.models.layers import (
    MLP,
    Attention,
    CrossAttention,
    PackedTokens,
    ScalarEmbedding,
    layer_norm,
    modulate,
    pack_tokens,
)
from kineograph.models.patches import patchify, unpatchify
from kineograph.models.positions import (
    Grid,
    grid_coordinates,
    rope_angles,
    rope_axes,
    rope_frequencies,
    sincos_1d,
    sincos_2d,
)
from kineograph.models.sequence import SequenceGroup, TokenShards
from kineograph.models.text_norm import TextNorm

Axis = Literal["space", "time", "full"]


class STDiTShape(Config):
    """What a recipe says of an STDiT; the channels of latents and text come from the autoencoder and the dataset.

    The defaults are our own model. models/presets.py has the sizes, and Open-Sora's.
    """

    kind: Literal["stdit"] = "stdit"
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows, columns of a patch. One frame, so that every frame has a timestep of its own."""
    width: int = Field(1152, ge=4)
    """Channels of a token."""
    depth: int = Field(28, ge=1)
    """Blocks; in the alternating layout pairs of blocks."""
    heads: int = Field(16, ge=1)
    """Attention heads; width must be a multiple of them, and of 4."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over width."""
    layout: Literal["joined", "alternating", "full"] = "joined"
    """joined: a block attends in space, in time and to the text, then MLP. alternating: a block of space, text, MLP, then
    one of time, text, MLP (Open-Sora v1.2). full: a block attends to all places of all frames, and to the text."""
    qk_norm: Literal["all", "self", "none"] = "all"
    """Which attention has an RMS norm of queries and keys, all or all but that to the text: it keeps attention from
    saturating in long trainings (Dehghani et al. 2023)."""
    grid: Grid = "centred"
    """How patches are counted for their position code (positions.grid_coordinates)."""
    grid_base: float = Field(8.0, gt=0)
    """centred: side of a square frame in units of the code. fixed: patches per unit. by_resolution: pixels of a side at
    which a patch is a unit."""
    frame_base: float = Field(1.0, gt=0)
    """plain_time: latent frames per unit of the code of frames."""
    rope: Literal["space_time", "time", "none"] = "space_time"
    """Which attention turns queries and keys by position (RoPE)."""
    period: float = Field(100.0, gt=1)
    """Longest wavelength of the codes of positions. Grids of patches are short: with the usual 10,000 nearly all channels
    are the same everywhere."""
    conditions: tuple[Literal["fps", "height", "width"], ...] = ("fps", "height", "width")
    """Numbers that are embedded beside the timestep."""
    pooled_text: bool = True
    """Whether the mean of the caption's states joins the modulation, on top of attention to its tokens."""
    text_mlp: bool = False
    """Text states are projected by an MLP, not by one matrix."""
    null_tokens: int = Field(1, ge=1)
    """Tokens that stand for "no caption": one is learned, several are fixed (Open-Sora)."""
    learn_sigma: bool = False
    """Twice the channels out: a variance behind the prediction."""
    plain_time: bool = False
    """Open-Sora v1: attention over time sees tokens without norm and modulation, with a position code added in the first
    block, and shares the gate of attention in space."""
    remodulate_given: bool = False
    """Open-Sora v1.2's defect: the last layer modulates frames that are given, at timestep 0, on top of the modulation of
    the others. Imported weights were trained with it."""

    @model_validator(mode="after")
    def _check(self) -> STDiTShape:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads, {self.heads}")
        axes = {"none": 0, "time": 1, "space_time": 3 if self.layout == "full" else 2}[self.rope]
        head = self.width // self.heads
        if axes and (head % 2 or head < 2 * axes):
            raise ValueError(f"RoPE over {axes} axes needs heads of an even width of {2 * axes} or more, not {head}")
        if self.layout == "full" and self.rope == "time":
            raise ValueError("the full layout must have rope space_time or none: its attention is not over time alone")
        if self.patch[0] != 1 or min(self.patch) < 1:
            raise ValueError(f"patch {list(self.patch)} must cover one latent frame: timesteps are per frame")
        if self.plain_time and self.layout != "joined":
            raise ValueError("plain_time is of the joined layout")
        return self


class STDiTConfig(STDiTShape):
    """An STDiT for latents and text of given channels."""

    in_channels: int = Field(ge=1)
    """Channels of the latents."""
    text_width: int = Field(ge=1)
    """Channels of a text token state."""


class Angles(NamedTuple):
    """Rotary angles: of places in a frame (S d/2), of frames (T d/2), of both (T·S d/2). Turned queries and keys let the
    modulation aim attention in a direction: "what is now to the right of here"."""

    space: Tensor | None
    time: Tensor | None
    full: Tensor | None


class STDiTBlock(nn.Module):
    """Attention along each of ``axes``, attention to the text, MLP."""

    def __init__(self, config: STDiTShape, axes: tuple[Axis, ...]) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.axes = axes
        self.plain_time = config.plain_time
        self.attention = nn.ModuleDict({a: Attention(width, heads, config.qk_norm != "none") for a in axes})
        self.cross = CrossAttention(width, heads, config.qk_norm == "all")
        self.mlp = MLP(width, round(width * config.mlp_ratio))
        self.modulation = nn.Parameter(torch.randn(modulations(config, axes), width) / width**0.5)  # adaLN-single

    def forward(
        self,
        x: Tensor,
        shared: Tensor,
        text: PackedTokens,
        angles: Angles,
        frame_code: Tensor | None = None,
        shards: TokenShards | None = None,
    ) -> Tensor:
        """x (B T S D); ``shared`` (B T k D) is the modulation that all blocks share, to which each adds its own;
        ``frame_code`` (T D) is for plain_time's first block; with ``shards`` x is of this rank's places alone."""
        modulation = (shared + self.modulation).unsqueeze(3)  # B T k 1 D
        parts = list(modulation.unbind(2))  # k times B T 1 D
        gate = parts[2]
        for axis in self.axes:
            attention = self.attention[axis]
            if axis == "time" and self.plain_time:
                y = x if frame_code is None else x + frame_code[:, None]
            else:
                shift, scale, gate = parts[:3]
                del parts[:3]
                y = modulate(layer_norm(x), shift, scale)
            x = x + gate * _along(axis, attention, y, angles, shards)
        x = x + self.cross(x.flatten(1, 2), text).view_as(x)
        shift, scale, gate = parts
        return x + gate * self.mlp(modulate(layer_norm(x), shift, scale))


def _along(axis: Axis, attention: nn.Module, x: Tensor, angles: Angles, shards: TokenShards | None) -> Tensor:
    """Attention of x (B T S D) within each frame, of each place over time, or over everything."""
    if axis == "space" and shards is not None:
        return shards.by_places(_along(axis, attention, shards.by_frames(x), angles, None))
    b, t, s, _ = x.shape
    if axis == "space":
        return attention(x.flatten(0, 1), angles.space).unflatten(0, (b, t))
    if axis == "full":
        return attention(x.flatten(1, 2), angles.full).unflatten(1, (t, s))
    return attention(x.transpose(1, 2).flatten(0, 1), angles.time).unflatten(0, (b, s)).transpose(1, 2)


def block_axes(config: STDiTShape) -> list[tuple[Axis, ...]]:
    """What each block of the model attends along."""
    layouts: dict[str, list[tuple[Axis, ...]]] = {
        "joined": [("space", "time")],
        "alternating": [("space",), ("time",)],
        "full": [("full",)],
    }
    return layouts[config.layout] * config.depth


def modulations(config: STDiTShape, axes: tuple[Axis, ...]) -> int:
    """Vectors of adaLN in a block: shift, scale and gate of each attention and of the MLP."""
    return 6 if config.plain_time else 3 * (len(axes) + 1)


class STDiT(nn.Module):
    """From noisy latents, text, a timestep per frame, frame rate and size to what the diffusion process asks for."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config = config
        self._sequence: SequenceGroup | None = None
        width, axes = config.width, block_axes(config)
        patch_volume = math.prod(config.patch)
        self.embed_patches = nn.Linear(config.in_channels * patch_volume, width)
        self.embed_timestep = ScalarEmbedding(width)
        self.embed_conditions = nn.ModuleDict({name: ScalarEmbedding(width) for name in config.conditions})
        self.embed_text: nn.Module
        if config.text_mlp:
            self.embed_text = MLP(config.text_width, width, width)
        else:
            self.embed_text = nn.Linear(config.text_width, width)
        self.null_text: Tensor
        if config.null_tokens == 1:
            self.null_text = nn.Parameter(torch.zeros(1, config.text_width))
        else:
            self.register_buffer("null_text", torch.zeros(config.null_tokens, config.text_width))
        if config.pooled_text:
            self.text_norm = TextNorm(config.text_width)
            self.embed_pooled = nn.Sequential(nn.Linear(config.text_width, width), nn.SiLU(), nn.Linear(width, width))
        if config.rope == "time":  # published weights hold the frequencies
            frequencies = rope_frequencies(width // config.heads, config.period)
            self.time_frequencies = nn.Parameter(frequencies, requires_grad=False)
        self.shared_modulation = nn.Linear(width, modulations(config, axes[0]) * width)
        self.blocks = nn.ModuleList(STDiTBlock(config, a) for a in axes)
        self.final_modulation = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.to_patches = nn.Linear(width, config.in_channels * (2 if config.learn_sigma else 1) * patch_volume)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for linear layers; zero where a branch meets the trunk, so that training starts from the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.null_text, std=0.02)
        for embedding in (self.embed_timestep, *self.embed_conditions.values()):
            assert isinstance(embedding, ScalarEmbedding)
            nn.init.normal_(embedding.up.weight, std=0.02)
            nn.init.normal_(embedding.down.weight, std=0.02)
        nn.init.zeros_(self.shared_modulation.weight)
        nn.init.zeros_(self.to_patches.weight)
        for block in self.blocks:
            assert isinstance(block, STDiTBlock)
            nn.init.zeros_(block.cross.out.weight)

    @property
    def sequence(self) -> SequenceGroup | None:
        """The ranks that share the tokens of a batch (sequence.py), which each of them is given whole, and of which each
        gives the whole output; None where this rank has all of them. Raises ValueError for the full layout."""
        return self._sequence

    @sequence.setter
    def sequence(self, group: SequenceGroup | None) -> None:
        if group is not None and self.config.layout == "full":
            raise ValueError(
                "ranks cannot share tokens in the full layout, where each attends to all: set workers.sequence_parallel=1 "
                "or the layout to joined or alternating"
            )
        self._sequence = group

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor, size: Tensor
    ) -> Tensor:
        """(B C T H W), with learn_sigma (B 2C T H W).

        latents (B C T H W), any H and W; timestep (B T), 0 = data .. 1000 = noise; text (B L text_width) with
        ``text_mask`` (B L) True on tokens, a row without tokens meaning "no caption"; fps (B) frames per second, 0 for
        images; size (B 2) height and width of the video in pixels.
        """
        given = (latents, timestep, text, text_mask, fps, size)
        if self.sequence is None:
            return self._predict(*given)
        frames, (height, width) = latents.shape[2], self._grid(latents)
        if self.sequence.is_for_clips(len(latents), frames, height * width):
            return self.sequence.run_by_clips(self._predict, given)
        return self._predict(*given, TokenShards(self.sequence, frames, height * width))

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Patches in a column and in a row."""
        height, width = latents.shape[3:]
        _, rows, columns = self.config.patch
        return -(-height // rows), -(-width // columns)

    def _predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor,
        fps: Tensor,
        size: Tensor,
        shards: TokenShards | None = None,
    ) -> Tensor:
        """As :meth:`forward`, all on this rank, or with ``shards`` together with others."""
        patch, frames = self.config.patch, latents.shape[2]
        rows, columns = self._coordinates(self._grid(latents), latents, size)
        places = sincos_2d(rows, columns, self.config.width, self.config.period)
        angles, frame_code = self._positions_in_time(frames, rows, columns)

        patches = patchify(latents, patch)
        if shards is not None:
            patches, places = shards.cut(patches, 2), shards.cut(places, 0)
        x = self.embed_patches(patches) + places.to(latents.dtype)  # B T S D
        tokens, pooled = self._embed_text(text, text_mask)
        condition = self._condition(timestep, pooled, fps, size)  # B T D
        shared = self.shared_modulation(F.silu(condition)).unflatten(-1, (-1, self.config.width))  # B T k D
        for block in self.blocks:
            x = block(x, shared, tokens, angles, frame_code, shards)
            frame_code = None
        x = self.to_patches(self._modulate_last(x, condition, timestep))
        x = x if shards is None else shards.gather(x)
        return unpatchify(x, patch, (frames, latents.shape[3], latents.shape[4]))

    def _coordinates(self, grid: tuple[int, int], latents: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (S) of the patches; clips of a batch have one size."""
        base = self.config.grid_base
        if self.config.grid == "by_resolution":
            base = math.sqrt(float(size[0, 0]) * float(size[0, 1])) / base
        return grid_coordinates(self.config.grid, *grid, base, latents.device)

    def _positions_in_time(self, frames: int, rows: Tensor, columns: Tensor) -> tuple[Angles, Tensor | None]:
        """Rotary angles, and the code (T D) that plain_time adds to the tokens."""
        config, head = self.config, self.config.width // self.config.heads
        index = torch.arange(frames, device=rows.device)
        code = sincos_1d(index / config.frame_base, config.width, config.period).to(self.embed_patches.weight.dtype)
        if config.rope == "none":
            return Angles(None, None, None), code
        if config.rope == "time":
            return Angles(None, rope_angles(index, self.time_frequencies.float()), None), None
        if config.layout == "full":
            s = len(rows)
            everywhere = (index.repeat_interleave(s), rows.repeat(frames), columns.repeat(frames))
            return Angles(None, None, rope_axes(everywhere, head, config.period)), None
        space = rope_axes((rows, columns), head, config.period)
        return Angles(space, rope_axes((index,), head, config.period), None), None

    def _condition(self, timestep: Tensor, pooled: Tensor | None, fps: Tensor, size: Tensor) -> Tensor:
        """What modulates a frame (B T D): its timestep, and what the whole clip has."""
        numbers = {"fps": fps, "height": size[:, 0], "width": size[:, 1]}
        condition = self.embed_timestep(timestep)
        for name, embed in self.embed_conditions.items():
            condition = condition + embed(numbers[name]).unsqueeze(1)
        return condition if pooled is None else condition + pooled.unsqueeze(1)

    def _embed_text(self, text: Tensor, mask: Tensor) -> tuple[PackedTokens, Tensor | None]:
        """Packed tokens, and the pooled caption (B D). Rows without tokens see those that stand for "no caption"."""
        pooled = None
        empty = ~mask.any(dim=1)  # B
        if self.config.pooled_text:
            text, pooled_states = self.text_norm(text, mask)
            pooled = self.embed_pooled(pooled_states)
        null = self.null_text.to(text.dtype).expand(len(text), -1, -1)
        present = torch.cat([empty[:, None].expand(-1, null.shape[1]), mask], dim=1)
        tokens = pack_tokens(torch.cat([null, text], dim=1), present)
        return tokens._replace(states=self.embed_text(tokens.states)), pooled

    def without_caption(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Text and mask to give in place of captions, text (B L text_width) and mask (B L), that are left out.

        None has a token. But where several fixed ones stand for "no caption", as many of them as the caption has: Open-Sora
        trains and samples with them under the caption's mask.
        """
        if self.config.null_tokens == 1 or self.config.pooled_text:
            return text, torch.zeros_like(mask)
        null = F.pad(self.null_text, (0, 0, 0, text.shape[1]))[: text.shape[1]]
        there = torch.arange(text.shape[1], device=mask.device) < self.config.null_tokens
        return null.to(text).expand_as(text), mask & there

    def _modulate_last(self, x: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        shift, scale = (self.final_modulation + condition.unsqueeze(2)).unsqueeze(3).unbind(2)  # B T 1 D
        last = modulate(layer_norm(x), shift, scale)
        if not self.config.remodulate_given:
            return last
        given = (timestep == 0) & (timestep.amax(dim=1, keepdim=True) > 0)  # B T
        clip = timestep.argmax(dim=1)[:, None, None, None].expand(-1, 1, 1, x.shape[-1])
        once = modulate(layer_norm(x), shift.gather(1, clip), scale.gather(1, clip))
        return torch.where(given[:, :, None, None], modulate(layer_norm(once), shift, scale), last)
