"""Published weights as ours: Open-Sora v1 and v1.2 (STDiT, STDiT3).

A checkpoint's state dict says nearly all of the model's shape; what it does not (the number of heads) is an argument.
A model shares the memory of an fp32 state that it is made from. DiT is in importing_dit.py.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kineograph.config import parse_config
from kineograph.errors import UserError
from kineograph.models.positions import sincos_1d, sincos_2d
from kineograph.models.stdit import STDiT, STDiTConfig

State = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)

WRAPPERS = ("module.", "model.", "_orig_mod.")
"""Prefixes that DDP, trainers and torch.compile put before every name."""
HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Heads of the published models, by width."""
TABLE_TOLERANCE = 1e-4
"""Of a position table's entries, on top of the rounding of its dtype."""


def read_state(path: str | Path) -> State:
    """The tensors of a .safetensors or a .pth/.pt/.bin checkpoint, without wrappers around it.

    Nothing but tensors is unpickled. Of a training checkpoint the averaged weights are taken where it has them. Raises
    UserError when there is no such file or no state dict in it.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        if len(found) != 1:
            raise UserError(f"{path} holds {len(found)} weight files: name the one to import")
        path = found[0]
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            mmap = zipfile.is_zipfile(path)  # files from before torch 1.6 are not, and cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} cannot be read as tensors ({type(error).__name__}: {reason})") from error
    for key in ("ema", "state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict: a mapping from names to tensors")
    while prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


class Names:
    """Takes tensors out of a foreign state dict by name; what is left at the end was not understood."""

    def __init__(self, state: Mapping[str, Tensor], kind: str) -> None:
        self._left = dict(state)
        self._kind = kind

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def look(self, name: str, ndim: int | None = None) -> Tensor:
        """The tensor, which stays. Raises UserError when it is not there, is empty, or is not of ``ndim`` dimensions."""
        if name not in self._left:
            raise UserError(f"this is no {self._kind} checkpoint: it has no {name}")
        tensor = self._left[name]
        if not tensor.numel():
            raise UserError(f"this is no {self._kind} checkpoint: {name} is empty")
        if ndim not in (None, tensor.ndim):
            raise self.wrong_shape(name, f"of {ndim} dimensions")
        return tensor

    def take(self, name: str, ndim: int | None = None) -> Tensor:
        tensor = self.look(name, ndim).float()
        del self._left[name]
        return tensor

    def linear(self, theirs: str, ours: str) -> State:
        return {f"{ours}.{part}": self.take(f"{theirs}.{part}") for part in ("weight", "bias")}

    def fused(self, theirs: str, query: str, key_value: str) -> State:
        """Queries, keys and values that are one linear layer there, and two here."""
        state: State = {}
        for part, ndim in (("weight", 2), ("bias", 1)):
            tensor = self.take(f"{theirs}.{part}", ndim)  # 3D …
            third = len(tensor) // 3
            state |= {f"{query}.{part}": tensor[:third], f"{key_value}.{part}": tensor[third:]}
        return state

    def wrong_shape(self, name: str, wanted: str) -> UserError:
        """What to raise for a tensor that is not ``wanted``."""
        shape = list(self._left[name].shape)
        return UserError(f"this is no {self._kind} checkpoint: {name} is of shape {shape}, not {wanted}")

    def finish(self) -> None:
        if self._left:
            names = ", ".join(sorted(self._left)[:3])
            raise UserError(f"this is no {self._kind} checkpoint: {len(self._left)} tensors are unknown, e.g. {names}")


def load_opensora_v1(state: Mapping[str, Tensor], heads: int | None = None) -> STDiT:
    """Open-Sora 1.0's STDiT. Its position tables must be the sine-cosine codes that they were made as: the model then
    takes videos of any size and length. Raises UserError when the state is of something else."""
    names = Names(state, "Open-Sora v1")
    shape = _common_shape(names, heads, "blocks")
    grid_base, frame_base = _read_tables(names, width=len(names.look("x_embedder.proj.weight")))
    config = _config(
        {
            **shape,
            "depth": _count(state, "blocks."),
            "layout": "joined",
            "plain_time": True,
            "qk_norm": "none",
            "rope": "none",
            "conditions": (),
            "grid": "fixed",
            "grid_base": grid_base,
            "frame_base": frame_base,
        }
    )
    ours = _shared_parts(names)
    for i in range(config.depth):
        ours |= _block(names, f"blocks.{i}", f"blocks.{i}", {"attn": "space", "attn_temp": "time"})
    names.finish()
    return with_weights(lambda: STDiT(config), ours)


def load_opensora_v3(state: Mapping[str, Tensor], heads: int | None = None, input_sq_size: float = 512.0) -> STDiT:
    """Open-Sora 1.2's STDiT3; ``input_sq_size`` is what its config calls so: the side, in pixels, at which its position
    codes count patches. Raises UserError when the state is of something else."""
    names = Names(state, "Open-Sora v3")
    qk_norm = "spatial_blocks.0.attn.q_norm.weight" in names
    if heads is None and qk_norm:
        head = len(names.look("spatial_blocks.0.attn.q_norm.weight", 1))
        heads = names.look("t_block.1.weight", 2).shape[1] // head
    config = _config(
        {
            **_common_shape(names, heads, "spatial_blocks"),
            "depth": _count(state, "spatial_blocks."),
            "layout": "alternating",
            "qk_norm": "self" if qk_norm else "none",
            "rope": "time",
            "conditions": ("fps",),
            "grid": "by_resolution",
            "grid_base": input_sq_size,
            "remodulate_given": True,
        }
    )
    ours = _shared_parts(names)
    ours |= _embedding(names, "fps_embedder.mlp", "embed_conditions.fps")
    ours["time_frequencies"] = names.take("rope.freqs")
    for i in range(config.depth):
        ours |= _block(names, f"spatial_blocks.{i}", f"blocks.{2 * i}", {"attn": "space"})
        ours |= _block(names, f"temporal_blocks.{i}", f"blocks.{2 * i + 1}", {"attn": "time"})
    names.finish()
    return with_weights(lambda: STDiT(config), ours)


def with_weights(build: Callable[[], M], state: State) -> M:
    """The model of ``build()`` with the tensors of ``state`` for its own: nothing is copied but what is not contiguous, so
    one set of weights is all that it takes. Raises UserError when they do not fit."""
    with torch.device("meta"):  # shapes without memory
        model = build()
    try:
        model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit together: {' '.join(str(error).split())[:200]}") from error
    return model.eval()


def _config(fields: Mapping[str, object]) -> STDiTConfig:
    """Raises UserError for a shape that our model cannot have, such as patches of several frames."""
    return parse_config(fields, STDiTConfig, name="the checkpoint")


def _common_shape(names: Names, heads: int | None, blocks: str) -> dict[str, object]:
    """Fields of an STDiTConfig that both versions' weights tell in the same way."""
    patch_weight = names.look("x_embedder.proj.weight")  # D C pt ph pw
    if patch_weight.ndim != 5:
        raise UserError("this is no Open-Sora checkpoint: x_embedder.proj.weight is not of a 3D convolution")
    width, in_channels = patch_weight.shape[:2]
    patch = tuple(patch_weight.shape[2:])
    null = names.look("y_embedder.y_embedding", 2)  # L text_width
    if heads is None and width not in HEADS:
        raise UserError(f"the number of attention heads of a model of width {width} cannot be seen: give --heads")
    out = names.look("final_layer.linear.bias").numel() // math.prod(patch)
    return {
        "in_channels": in_channels,
        "text_width": null.shape[1],
        "patch": patch,
        "width": width,
        "heads": HEADS[width] if heads is None else heads,
        "mlp_ratio": names.look(f"{blocks}.0.mlp.fc1.bias").numel() / width,
        "period": 10_000.0,
        "pooled_text": False,
        "text_mlp": True,
        "null_tokens": null.shape[0],
        "learn_sigma": out == 2 * in_channels,
    }


def _shared_parts(names: Names) -> State:
    """Everything of both versions but the blocks."""
    patch = names.take("x_embedder.proj.weight")  # D C pt ph pw
    return {
        "embed_patches.weight": patch.permute(0, 2, 3, 4, 1).flatten(1),  # our patches have channels last
        "embed_patches.bias": names.take("x_embedder.proj.bias"),
        "null_text": names.take("y_embedder.y_embedding"),
        "final_modulation": names.take("final_layer.scale_shift_table"),
        **_embedding(names, "t_embedder.mlp", "embed_timestep"),
        **names.linear("t_block.1", "shared_modulation"),
        **names.linear("y_embedder.y_proj.fc1", "embed_text.up"),
        **names.linear("y_embedder.y_proj.fc2", "embed_text.down"),
        **names.linear("final_layer.linear", "to_patches"),
    }


def _embedding(names: Names, theirs: str, ours: str) -> State:
    return {**names.linear(f"{theirs}.0", f"{ours}.up"), **names.linear(f"{theirs}.2", f"{ours}.down")}


def _block(names: Names, theirs: str, ours: str, attentions: Mapping[str, str]) -> State:
    state = {
        f"{ours}.modulation": names.take(f"{theirs}.scale_shift_table"),
        **names.linear(f"{theirs}.cross_attn.q_linear", f"{ours}.cross.query"),
        **names.linear(f"{theirs}.cross_attn.kv_linear", f"{ours}.cross.key_value"),
        **names.linear(f"{theirs}.cross_attn.proj", f"{ours}.cross.out"),
        **names.linear(f"{theirs}.mlp.fc1", f"{ours}.mlp.up"),
        **names.linear(f"{theirs}.mlp.fc2", f"{ours}.mlp.down"),
    }
    for foreign, axis in attentions.items():
        source, target = f"{theirs}.{foreign}", f"{ours}.attention.{axis}"
        state |= names.linear(f"{source}.proj", f"{target}.out")
        state |= names.fused(f"{source}.qkv", f"{target}.query", f"{target}.key_value")
        for norm in ("q", "k"):
            if f"{source}.{norm}_norm.weight" in names:
                which = {"q": "query_norm", "k": "key_norm"}[norm]
                state[f"{target}.{which}.weight"] = names.take(f"{source}.{norm}_norm.weight")
    return state


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks named prefix0, prefix1, …"""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _read_tables(names: Names, width: int) -> tuple[float, float]:
    """Patches and frames per unit of the position tables (1 S D) and (1 T D); 1 where a table has but one place.

    Raises UserError when they are not the sine-cosine codes of a grid, row by row, and of frames in order, but for
    rounding.
    """
    wrong = UserError("the checkpoint's position tables are not the sine-cosine codes of Open-Sora v1")
    if width % 4:
        raise wrong
    (places, place_eps), (frames, frame_eps) = (
        _take_table(names, name, width) for name in ("pos_embed", "pos_embed_temporal")
    )
    columns, rows = (_decode(code) for code in places.chunk(2, dim=1))
    ends = (columns.diff() <= 0).nonzero()  # of a row, where the columns start anew
    in_row = int(ends[0]) + 1 if len(ends) else len(columns)
    index = torch.arange(len(places))
    column, row, frame = index % in_row, index // in_row, torch.arange(len(frames))
    grid_base = _per_unit(torch.cat([column, row]), torch.cat([columns, rows]), place_eps)
    frame_base = _per_unit(frame, _decode(frames), frame_eps)
    if not min(grid_base, frame_base) > 0:
        raise wrong
    made_places = sincos_2d(row / grid_base, column / grid_base, width)
    made_frames = sincos_1d(frame / frame_base, width)
    for made, table, eps in ((made_places, places, place_eps), (made_frames, frames, frame_eps)):
        if not torch.allclose(made, table, rtol=0, atol=TABLE_TOLERANCE + eps):
            raise wrong
    return grid_base, frame_base


def _take_table(names: Names, name: str, width: int) -> tuple[Tensor, float]:
    """A table (N D), and the machine epsilon of the dtype that it was rounded to: the coarsest that holds it."""
    table = names.look(name, 3)
    if table.shape[0] != 1 or table.shape[2] != width:
        raise names.wrong_shape(name, f"[1, places, {width}]")
    table = names.take(name)[0]
    coarse = next((d for d in (torch.bfloat16, torch.float16) if torch.equal(table, table.to(d).float())), table.dtype)
    return table, torch.finfo(coarse).eps


def _decode(codes: Tensor) -> Tensor:
    """The positions (N), in float64, of codes (N D) by sincos_1d: the longest wave says about where, and each shorter one
    more exactly."""
    half = codes.shape[1] // 2
    angles = torch.atan2(codes[:, :half], codes[:, half:]).double()  # N D/2
    frequencies = 10_000.0 ** (-torch.arange(half).double() / half)
    positions = angles[:, -1] / frequencies[-1]
    for angle, frequency in zip(angles.T.flip(0), frequencies.flip(0), strict=True):
        turns = ((positions * frequency - angle) / math.tau).round()
        positions = (angle + math.tau * turns) / frequency
    return positions


def _per_unit(index: Tensor, positions: Tensor, eps: float) -> float:
    """Steps of ``index`` per unit of ``positions``, which were read from a table of that machine epsilon: the simplest
    fraction that fits, else by least squares; 0 when there is no such number."""
    if not index.any():
        return 1.0
    found = float(index.square().sum() / (index * positions).sum())
    if not math.isfinite(found):
        return 0.0
    for denominator in range(1, 101):  # the number that the table was made with, were it exact
        given = round(found * denominator) / denominator
        # An entry is off by eps / 4 at most, a position by the root of 2 times that.
        if given and torch.allclose(index.double() / given, positions, rtol=1e-6, atol=1e-6 + eps / 2):
            return given
    return found
