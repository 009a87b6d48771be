"""Published DiT weights (facebookresearch/DiT) as ours."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from kineograph.config import parse_config
from kineograph.errors import UserError
from kineograph.models.dit import LABEL_WIDTH, DiT, DiTConfig
from kineograph.models.importing import HEADS, Names, State, with_weights


def load_dit(state: Mapping[str, Tensor], heads: int | None = None) -> DiT:
    """The model of a DiT state dict, ready to sample. Raises UserError when the state is of something else."""
    config, weights = state_from_reference(state, heads)
    return with_weights(lambda: DiT(config), weights)


def state_from_reference(state: Mapping[str, Tensor], heads: int | None = None) -> tuple[DiTConfig, State]:
    """Config and weights of our model from a state dict in the names of the DiT repository.

    The weights do not tell the number of ``heads``: None is that of the published model of the same width. Raises
    UserError when there is none, or the state is of something else.
    """
    names = Names(state, "DiT")
    config = _read_config(names, heads)
    patch = names.take("x_embedder.proj.weight")  # D C p p
    weights = {
        "embed_patches.weight": patch.permute(0, 2, 3, 1).flatten(1),  # our patches have channels last
        "embed_patches.bias": names.take("x_embedder.proj.bias"),
        "embed_label.weight": names.take("y_embedder.embedding_table.weight"),
        "positions": names.take("pos_embed")[0],
        **names.linear("t_embedder.mlp.0", "embed_timestep.up"),
        **names.linear("t_embedder.mlp.2", "embed_timestep.down"),
        **names.linear("final_layer.adaLN_modulation.1", "final_modulation"),
        **names.linear("final_layer.linear", "to_patches"),
    }
    for index in range(config.depth):
        weights |= _read_block(names, f"blocks.{index}")
    names.finish()
    return config, weights


def _read_config(names: Names, heads: int | None) -> DiTConfig:
    """The shape that the weights tell."""
    patch = names.look("x_embedder.proj.weight")  # D C p p
    if patch.ndim != 4:
        raise UserError("this is no DiT checkpoint: x_embedder.proj.weight is not of a 2D convolution")
    width, in_channels, side = patch.shape[:3]
    if heads is None and width not in HEADS:
        raise UserError(f"the number of attention heads of a model of width {width} cannot be seen: give --heads")
    table = names.look("pos_embed", 3)  # 1 S D
    rows = math.isqrt(table.shape[1])
    if table.shape != (1, rows**2, width):
        raise names.wrong_shape("pos_embed", f"[1, places of a square grid, {width}]")
    out = names.look("final_layer.linear.bias").numel() // side**2
    depth = 0
    while f"blocks.{depth}.attn.qkv.weight" in names:
        depth += 1
    fields = {
        "in_channels": in_channels,
        "text_width": LABEL_WIDTH,
        "patch": side,
        "width": width,
        "depth": depth,
        "heads": HEADS[width] if heads is None else heads,
        "mlp_ratio": names.look("blocks.0.mlp.fc1.bias").numel() / width,
        "grid": (rows, rows),
        "condition": "class",
        "num_classes": len(names.look("y_embedder.embedding_table.weight", 2)) - 1,
        "learn_sigma": out == 2 * in_channels,
    }
    return parse_config(fields, DiTConfig, name="the checkpoint")


def _read_block(names: Names, block: str) -> State:
    """A block's weights; its name is the same on both sides."""
    return {
        **names.linear(f"{block}.attn.proj", f"{block}.attention.out"),
        **names.linear(f"{block}.mlp.fc1", f"{block}.mlp.up"),
        **names.linear(f"{block}.mlp.fc2", f"{block}.mlp.down"),
        **names.linear(f"{block}.adaLN_modulation.1", f"{block}.modulation"),
        **names.fused(f"{block}.attn.qkv", f"{block}.attention.query", f"{block}.attention.key_value"),
    }
