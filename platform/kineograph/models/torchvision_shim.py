"""Let torchvision be imported beside a CPU build of torch.

transformers and open_clip import torchvision where it is installed. The wheel that pip installs is built for CUDA; beside
a CPU torch its compiled operators do not load, and the import ends with "operator torchvision::nms does not exist".
Declaring the operators' schemas is enough for the import; calling one of them still fails, and nobody here does.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the schemas live as long as this does


def ensure_torchvision_importable() -> bool:
    """Import torchvision if it is installed, declaring its operators only where its own did not load.

    Returns whether the declarations were needed. Call it before importing transformers or open_clip.
    """
    global _library
    if _library is not None:
        return True
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    else:
        return False
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]  # the half-imported package
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    importlib.import_module("torchvision")
    return True
