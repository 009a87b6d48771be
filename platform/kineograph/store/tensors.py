"""Tensors in Parquet cells: bytes, dtype and shape, and never a pickle."""

from __future__ import annotations

from typing import Any

import numpy as np

# dtypes a cell may hold.
DTYPES = ("float64", "float32", "float16", "uint8", "int32", "int64")


def pack(array: np.ndarray) -> dict[str, Any]:
    """``array`` as the struct cell {bytes, dtype, shape}. Raises ValueError for a dtype not in DTYPES."""
    if array.dtype.name not in DTYPES:
        raise ValueError(f"cannot store a tensor of {array.dtype.name}; one of {', '.join(DTYPES)}")
    return {
        "bytes": np.ascontiguousarray(array).tobytes(),
        "dtype": array.dtype.name,
        "shape": list(array.shape),
    }


def unpack(cell: dict[str, Any]) -> np.ndarray:
    """The array of a cell, in the cell's own dtype and shape (read-only: it shares the cell's bytes).

    Raises ValueError when dtype, shape and bytes do not agree.
    """
    if cell["dtype"] not in DTYPES:
        raise ValueError(f"tensor cell with dtype {cell['dtype']!r}; one of {', '.join(DTYPES)}")
    return np.frombuffer(cell["bytes"], dtype=cell["dtype"]).reshape(cell["shape"])
