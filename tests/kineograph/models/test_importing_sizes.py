"""Published architectures of any size: what the importer reads, against the forward passes written down plainly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kineograph.models.importing import load_opensora_v1, load_opensora_v3
from kineograph.models.positions import grid_coordinates, sincos_1d, sincos_2d

C, TEXT, TOKENS = 2, 5, 3


def table(positions, width):
    """The 1D sine-cosine table of the published code, in float64 NumPy."""
    angles = np.outer(positions, 1 / 10_000 ** (np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def grid_table(grid, width, scale):
    columns, rows = np.meshgrid(np.arange(grid[1]) / scale, np.arange(grid[0]) / scale)
    both = [table(axis.ravel(), width // 2) for axis in (columns, rows)]
    return torch.from_numpy(np.concatenate(both, axis=1)).float()


def draw_state(version, s, seed):
    """Random weights in the published names, of the size ``s`` (see SIZES)."""
    g, width = torch.Generator().manual_seed(seed), s["heads"] * s["head"]
    state = {}

    def tensor(name, *shape):
        state[name] = torch.randn(*shape, generator=g) / shape[-1] ** 0.5

    def linear(name, rows, columns):
        tensor(f"{name}.weight", rows, columns)
        state[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=g)

    out = math.prod(s["patch"]) * C * (1 + s["sigma"])
    tensor("x_embedder.proj.weight", width, C, *s["patch"])
    tensor("x_embedder.proj.bias", width)
    tensor("y_embedder.y_embedding", TOKENS, TEXT)
    linear("t_block.1", 6 * width, width)
    tensor("final_layer.scale_shift_table", 2, width)
    linear("final_layer.linear", out, width)
    linear("y_embedder.y_proj.fc1", width, TEXT)
    linear("y_embedder.y_proj.fc2", width, width)
    for embedder in ("t_embedder", "fps_embedder")[: 1 if version == 1 else 2]:
        linear(f"{embedder}.mlp.0", width, 256)
        linear(f"{embedder}.mlp.2", width, width)
    if version == 1:
        state["pos_embed"] = grid_table(s["grid"], width, s["space_scale"])[None]
        state["pos_embed_temporal"] = torch.from_numpy(table(np.arange(s["frames"]) / s["time_scale"], width))[
            None
        ].float()
    else:
        state["rope.freqs"] = 10_000 ** (-torch.arange(0, s["head"], 2) / s["head"])
    stacks = {1: {"blocks": ("attn", "attn_temp")}, 3: {"spatial_blocks": ("attn",), "temporal_blocks": ("attn",)}}
    for stack, attentions in stacks[version].items():
        for name in (f"{stack}.{i}" for i in range(s["depth"])):
            tensor(f"{name}.scale_shift_table", 6, width)
            linear(f"{name}.cross_attn.q_linear", width, width)
            linear(f"{name}.cross_attn.kv_linear", 2 * width, width)
            linear(f"{name}.cross_attn.proj", width, width)
            linear(f"{name}.mlp.fc1", s["hidden"], width)
            linear(f"{name}.mlp.fc2", width, s["hidden"])
            for attention in attentions:
                linear(f"{name}.{attention}.qkv", 3 * width, width)
                linear(f"{name}.{attention}.proj", width, width)
                if version == 3 and s["qk_norm"]:
                    tensor(f"{name}.{attention}.q_norm.weight", s["head"])
                    tensor(f"{name}.{attention}.k_norm.weight", s["head"])
    return state


class Plain:
    """The two published forward passes written down plainly, in float64: a clip is one sequence of frames × places, and
    attention in space or time is attention to all of it under a mask."""

    def __init__(self, state, heads, frames, places):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.heads = heads
        self.frame = torch.arange(frames).repeat_interleave(places)
        self.place = torch.arange(places).repeat(frames)

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def attend(self, query, key, value, allowed):
        """Each (B N D), ``allowed`` (N M) or (B N M)."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (query, key, value))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~allowed.expand(len(q), *scores.shape[2:])[:, None], -math.inf).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)

    def attend_self(self, name, x, axis):
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.linear(f"{name}.qkv", x).chunk(3, dim=-1))
        if f"{name}.q_norm.weight" in self.state:
            q = q / (q.square().mean(-1, True) + 1e-6).sqrt() * self.state[f"{name}.q_norm.weight"]
            k = k / (k.square().mean(-1, True) + 1e-6).sqrt() * self.state[f"{name}.k_norm.weight"]
        if axis == "time" and "rope.freqs" in self.state:
            turn = torch.polar(torch.ones(()).double(), self.frame[:, None, None] * self.state["rope.freqs"])  # N 1 d/2
            q, k = (
                torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
                for y in (q, k)
            )
        same = self.frame if axis == "space" else self.place
        attended = self.attend(q.flatten(2), k.flatten(2), v.flatten(2), same[:, None] == same)
        return self.linear(f"{name}.proj", attended)

    def attend_text(self, name, x, text, mask):
        key, value = self.linear(f"{name}.kv_linear", text).chunk(2, dim=-1)
        attended = self.attend(self.linear(f"{name}.q_linear", x), key, value, mask[:, None, :])
        return self.linear(f"{name}.proj", attended)

    def embed(self, name, value):
        angles = value.float()[..., None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)  # fp32, as published
        code = torch.cat([angles.cos(), angles.sin()], dim=-1).double()
        return self.linear(f"{name}.mlp.2", F.silu(self.linear(f"{name}.mlp.0", code)))

    def mlp(self, name, x, activation):
        return self.linear(f"{name}.fc2", activation(self.linear(f"{name}.fc1", x)))

    def block(self, name, x, shared, text, mask, axes, time_code=None):
        """``shared`` (B N 6 D) is t_block's output at each token's frame."""
        shift, scale, gate, *of_mlp = (shared + self.state[f"{name}.scale_shift_table"]).unbind(2)
        x = x + gate * self.attend_self(f"{name}.attn", norm(x) * (1 + scale) + shift, axes[0])
        if len(axes) == 2:
            x = x + gate * self.attend_self(f"{name}.attn_temp", x if time_code is None else x + time_code, axes[1])
        x = x + self.attend_text(f"{name}.cross_attn", x, text, mask)
        shift, scale, gate = of_mlp
        return x + gate * self.mlp(f"{name}.mlp", norm(x) * (1 + scale) + shift, tanh_gelu)

    def forward(self, x, timestep, caption, mask, fps, codes, time_code=None):
        """x (B C T H W) of whole patches, timestep (B T), ``codes`` (S D) of places; ``time_code`` (T D) makes it v1."""
        kernel = self.state["x_embedder.proj.weight"]
        tokens = F.conv3d(x, kernel, self.state["x_embedder.proj.bias"], stride=kernel.shape[2:]).flatten(2).mT  # B N D
        y = tokens + codes.double()[self.place]
        told = self.embed("t_embedder", timestep)  # B T D
        if "fps_embedder.mlp.0.weight" in self.state:
            told = told + self.embed("fps_embedder", fps)[:, None]
        shared = self.linear("t_block.1", F.silu(told)).unflatten(-1, (6, -1))[:, self.frame]
        text = self.mlp("y_embedder.y_proj", caption, tanh_gelu)
        for i in range(len({name.split(".")[1] for name in self.state if "blocks." in name})):
            if time_code is None:
                y = self.block(f"spatial_blocks.{i}", y, shared, text, mask, ["space"])
                y = self.block(f"temporal_blocks.{i}", y, shared, text, mask, ["time"])
            else:
                code = time_code.double()[self.frame] if i == 0 else None
                y = self.block(f"blocks.{i}", y, shared, text, mask, ["space", "time"], code)
        last = (told[:, :, None] + self.state["final_layer.scale_shift_table"])[:, self.frame]  # B N 2 D
        y = norm(y) * (1 + last[:, :, 1]) + last[:, :, 0]
        y = self.linear("final_layer.linear", y)
        (_, _, pt, ph, pw), (b, _, t, h, w) = kernel.shape, x.shape
        y = y.view(b, t // pt, h // ph, w // pw, pt, ph, pw, -1)
        return torch.einsum("bthwpqrc->bctphqwr", y).reshape(b, -1, t, h, w)


def norm(x):
    return (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


SIZES = {
    "heads": st.sampled_from([2, 4]),
    "head": st.sampled_from([6, 8, 18]),
    "depth": st.integers(1, 2),
    "patch": st.sampled_from([(1, 1, 1), (1, 2, 2), (1, 1, 3)]),
    "hidden": st.integers(1, 64),
    "sigma": st.booleans(),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "frames": st.integers(1, 4),
}
TABLES = {"space_scale": st.sampled_from([0.5, 1.0, 1.5, 0.731]), "time_scale": st.sampled_from([2 / 3, 1.0, 0.25])}
quick = settings(deadline=None, max_examples=40)


def draw_inputs(grid, frames, patch, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, C, frames, grid[0] * patch[1], grid[1] * patch[2], generator=g).double()
    mask = torch.tensor([[True, False, True], [True, True, True]])
    return x, torch.randn(2, TOKENS, TEXT, generator=g).double(), mask, torch.tensor([8.0, 24.0]).double()


def check_fields(model, s):
    config, width = model.config, s["heads"] * s["head"]
    assert (config.width, config.heads, config.depth, config.patch) == (width, s["heads"], s["depth"], s["patch"])
    assert (config.in_channels, config.text_width, config.null_tokens) == (C, TEXT, TOKENS)
    assert model.blocks[0].mlp.up.out_features == s["hidden"]
    assert config.learn_sigma == s["sigma"]


class TestAnySize:
    @quick
    @given(s=st.fixed_dictionaries(SIZES | TABLES), seed=st.integers(0, 99))
    def test_of_v1(self, s, seed):
        """Also on a grid and a number of frames for which the file has no table."""
        state = draw_state(1, s, seed)
        model = load_opensora_v1(state, heads=s["heads"]).double()
        check_fields(model, s)
        if s["grid"] != (1, 1):
            assert model.config.grid_base == pytest.approx(s["space_scale"], rel=1e-6)
        if s["frames"] > 1:
            assert model.config.frame_base == pytest.approx(s["time_scale"], rel=1e-6)
        grown = (s["grid"][1] + 1, s["grid"][0]), s["frames"] + 1
        for grid, frames in [(s["grid"], s["frames"])] + [grown] * (s["grid"] != (1, 1) and s["frames"] > 1):
            x, caption, mask, fps = draw_inputs(grid, frames, s["patch"], seed)
            timestep = torch.tensor([[10.0], [700.0]]).expand(2, frames).double()
            codes = grid_table(grid, model.config.width, s["space_scale"])
            time_code = torch.from_numpy(table(np.arange(frames) / s["time_scale"], model.config.width))
            plain = Plain(state, s["heads"], frames, math.prod(grid))
            expected = plain.forward(x, timestep, caption, mask, fps, codes, time_code)
            with torch.inference_mode():
                said = model(x, timestep, caption, mask, fps, torch.zeros(2, 2))
            torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5)

    @quick
    @given(s=st.fixed_dictionaries(SIZES | TABLES), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
    def test_of_v1_with_tables_in_half_precision(self, s, dtype):
        state = draw_state(1, s, 0)
        halves = {name: state[name].to(dtype) for name in ("pos_embed", "pos_embed_temporal")}
        config = load_opensora_v1(state | halves, heads=s["heads"]).config
        (rows, columns), width = s["grid"], config.width
        coordinates = grid_coordinates("fixed", rows, columns, config.grid_base, torch.device("cpu"))
        made = {
            "pos_embed": sincos_2d(*coordinates, width),
            "pos_embed_temporal": sincos_1d(torch.arange(s["frames"]) / config.frame_base, width),
        }
        for name, table in made.items():
            torch.testing.assert_close(table, state[name][0], atol=torch.finfo(dtype).eps, rtol=0)
        if s["space_scale"] != 0.731 and s["grid"] != (1, 1):
            assert config.grid_base == s["space_scale"]
        if s["frames"] > 1:
            assert config.frame_base == s["time_scale"]

    @quick
    @given(
        s=st.fixed_dictionaries(SIZES | {"qk_norm": st.booleans()}), side=st.floats(64, 1024), seed=st.integers(0, 99)
    )
    def test_of_v3(self, s, side, seed):
        """With a timestep for each frame, as frames that are not given have it there."""
        state = draw_state(3, s, seed)
        model = load_opensora_v3(state, heads=None if s["qk_norm"] else s["heads"], input_sq_size=300.0).double()
        check_fields(model, s)
        (rows, columns), frames = s["grid"], s["frames"]
        x, caption, mask, fps = draw_inputs(s["grid"], frames, s["patch"], seed)
        timestep = 1 + 999 * torch.rand(2, frames, generator=torch.Generator().manual_seed(seed)).double()
        unit = side / 300 / round(math.sqrt(rows * columns))
        x_code, y_code = np.meshgrid(np.arange(columns) / columns / unit, np.arange(rows) / rows / unit)
        codes = np.concatenate([table(axis.ravel(), model.config.width // 2) for axis in (x_code, y_code)], axis=1)
        expected = Plain(state, s["heads"], frames, rows * columns).forward(
            x, timestep, caption, mask, fps, torch.from_numpy(codes)
        )
        with torch.inference_mode():
            said = model(x, timestep, caption, mask, fps, torch.tensor([[side, side]] * 2))
        torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5)
