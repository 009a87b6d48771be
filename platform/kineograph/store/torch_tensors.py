"""Torch tensors in Parquet cells: as :mod:`kineograph.store.tensors`, and bfloat16, which numpy does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""dtypes a cell may hold."""


def pack_tensor(tensor: Tensor) -> dict[str, Any]:
    """``tensor`` as the struct cell {bytes, dtype, shape}. Raises ValueError for a dtype not in DTYPES."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"cannot store a tensor of {name}; one of {', '.join(DTYPES)}")
    flat = tensor.detach().cpu().reshape(-1)
    return {"bytes": flat.view(torch.uint8).numpy().tobytes(), "dtype": name, "shape": list(tensor.shape)}


def unpack_tensor(cell: dict[str, Any]) -> Tensor:
    """The tensor of a cell, in the cell's own dtype and shape. Raises ValueError when they do not agree with its bytes."""
    if cell["dtype"] not in DTYPES:
        raise ValueError(f"tensor cell with dtype {cell['dtype']!r}; one of {', '.join(DTYPES)}")
    try:
        flat = torch.from_numpy(np.frombuffer(cell["bytes"], np.uint8).copy())
        return flat.view(DTYPES[cell["dtype"]]).reshape(cell["shape"])
    except RuntimeError as error:
        what = f"{cell['dtype']} of shape {list(cell['shape'])}"
        raise ValueError(f"{len(cell['bytes'])} bytes are no tensor of {what}") from error
