"""LPIPS as a loss: how different two pictures look to a network trained on photographs (Zhang et al. 2018).

The ``lpips`` package holds the weights of its heads; the network behind them is torchvision's, whose weights have to be
downloaded once.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kineograph.errors import UserError

Backbone = Literal["alex", "vgg"]

_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_URL = "https://download.pytorch.org/models/"


def perceptual_missing(backbone: Backbone = "vgg", weights: str | Path | None = None) -> str:
    """What the perceptual loss lacks on this machine and how to get it, in one line; "" when it can be had."""
    if importlib.util.find_spec("lpips") is None or importlib.util.find_spec("torchvision") is None:
        return "the perceptual loss needs lpips and torchvision: pip install lpips torchvision"
    path = _weights_path(backbone, weights)
    if not path.is_file():
        return f"the perceptual loss needs the weights of {backbone}: download {_URL}{_FILES[backbone]} to {path}"
    return ""


class Perceptual(nn.Module):
    """LPIPS between videos, frame by frame; its weights are fixed."""

    def __init__(self, backbone: Backbone = "vgg", weights: str | Path | None = None) -> None:
        """``weights`` is torchvision's file of the backbone; None looks where torch.hub keeps what it downloads.

        Raises UserError, with :func:`perceptual_missing`, when there is none or it is damaged.
        """
        super().__init__()
        missing = perceptual_missing(backbone, weights)
        if missing:
            raise UserError(missing)
        from kineograph.models.torchvision_shim import ensure_torchvision_importable

        ensure_torchvision_importable()
        import lpips  # type: ignore[import-untyped]

        path = _weights_path(backbone, weights)
        # Built without weights, because the package would unpickle and download; they are read here.
        self.lpips: Any = lpips.LPIPS(net=backbone, pretrained=False, pnet_rand=True, verbose=False)
        try:
            features = torch.load(path, map_location="cpu", weights_only=True)
            self._load_backbone(features)
        except (OSError, RuntimeError, LookupError, ValueError, EOFError, UnpicklingError) as error:
            raise UserError(f"{path} does not hold torchvision's weights of {backbone}: download it again") from error
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth"
        self.lpips.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False)
        self.requires_grad_(False).eval()

    def _load_backbone(self, features: dict[str, Tensor]) -> None:
        """lpips cuts torchvision's ``features`` into slices but keeps the numbers of the layers."""
        for name, parameter in self.lpips.net.named_parameters():
            _, layer, what = name.split(".")
            parameter.data.copy_(features[f"features.{layer}.{what}"])

    def train(self, mode: bool = True) -> Perceptual:
        """Stays as it is: its dropout is for training LPIPS itself."""
        return super().train(False)

    def forward(self, video: Tensor, reference: Tensor) -> Tensor:
        """(B 3 T H W) in [-1, 1], twice, to the mean over frames: (B)."""
        images, references = (v.transpose(1, 2).flatten(0, 1) for v in (video, reference))
        distance: Tensor = self.lpips(images, references)
        return distance.flatten(1).mean(1).unflatten(0, (len(video), -1)).mean(1)


def _weights_path(backbone: Backbone, weights: str | Path | None) -> Path:
    if weights is not None:
        return Path(weights).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints" / _FILES[backbone]
