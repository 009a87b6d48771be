"""Models by name: our own STDiT from a demo to XL/2, Open-Sora's two, DiT, and the classifiers.

A preset is a shape together with what it is usually given: the size of a clip, the autoencoder's strides, the length of a
caption. The number behind the slash is the side of a patch in latents (in pixels for classifiers).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from kineograph.errors import UserError
from kineograph.models.dit import LABEL_WIDTH, DiTConfig
from kineograph.models.flops import ModelConfig
from kineograph.models.stdit import STDiTConfig
from kineograph.models.vit import VIT_PRESETS, ViTConfig
from kineograph.models.vivit import VIVIT_PRESETS, ViViTConfig

T5_XXL = 4096
"""Channels of T5-XXL's states."""
MINILM = 384
"""Channels of the states of MiniLM, the text encoder that comes along."""
CLASSES = 1000
"""Classes of ImageNet."""


@dataclass(frozen=True)
class Preset:
    """A model and what it is given."""

    about: str
    """What it is, in a line."""
    config: ModelConfig
    """Shape of the model."""
    size: tuple[int, int, int]
    """Frames, height and width of a clip in pixels; one frame is an image."""
    strides: tuple[int, int, int] = (1, 1, 1)
    """Frames, rows and columns of pixels per latent; ones for a model of pixels."""
    text_tokens: int = 0
    """Tokens of a caption; 0 for a model without text."""
    classes: int = 0
    """Classes of a classifier."""

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip in latents: the first frame is a latent of its own; rounded up."""
        frames, rows, columns = self.strides
        return 1 - (1 - self.size[0]) // frames, -(-self.size[1] // rows), -(-self.size[2] // columns)


# Width, depth and heads of DiT's sizes (Peebles & Xie 2022, table 1).
_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}


def _shape(size: str) -> dict[str, Any]:
    return dict(zip(("width", "depth", "heads"), _SIZES[size], strict=True))


def _own(size: str) -> Preset:
    """Our STDiT for a causal video autoencoder of 16 channels and T5-XXL."""
    config = STDiTConfig(in_channels=16, text_width=T5_XXL, **_shape(size))
    about = f"our STDiT at the size of DiT-{size.upper()}"
    return Preset(about, config, size=(17, 256, 256), strides=(4, 8, 8), text_tokens=120)


def _tiny() -> Preset:
    config = STDiTConfig(in_channels=16, text_width=MINILM, width=128, depth=4, heads=4)
    about = "our STDiT as the demo trains it on two CPU cores"
    return Preset(about, config, size=(9, 32, 32), strides=(4, 4, 4), text_tokens=8)


def _opensora_v1() -> Preset:
    """Open-Sora 1.0's STDiT-XL/2, which 759,620,768 parameters make up."""
    config = STDiTConfig(
        in_channels=4,
        text_width=T5_XXL,
        **_shape("xl"),
        layout="joined",
        plain_time=True,
        qk_norm="none",
        rope="none",
        conditions=(),
        grid="fixed",
        grid_base=0.5,
        period=10_000.0,
        pooled_text=False,
        text_mlp=True,
        null_tokens=120,
        learn_sigma=True,
    )
    about = "Open-Sora 1.0, for Stable Diffusion's image autoencoder"
    return Preset(about, config, size=(16, 256, 256), strides=(1, 8, 8), text_tokens=120)


def _opensora_v3() -> Preset:
    """Open-Sora 1.2's STDiT3-XL/2, which 1,207,643,972 parameters make up."""
    config = STDiTConfig(
        in_channels=4,
        text_width=T5_XXL,
        **_shape("xl"),
        layout="alternating",
        qk_norm="self",
        rope="time",
        conditions=("fps",),
        grid="by_resolution",
        grid_base=512.0,
        period=10_000.0,
        pooled_text=False,
        text_mlp=True,
        null_tokens=300,
        learn_sigma=True,
        remodulate_given=True,
    )
    about = "Open-Sora 1.2, for its video autoencoder"
    return Preset(about, config, size=(17, 256, 256), strides=(4, 8, 8), text_tokens=300)


def _dit(size: str, patch: int) -> Preset:
    """DiT for 256x256 images of ImageNet, in the latents of Stable Diffusion's autoencoder."""
    config = DiTConfig(
        in_channels=4,
        text_width=LABEL_WIDTH,
        condition="class",
        num_classes=CLASSES,
        patch=patch,
        grid=(32 // patch, 32 // patch),
        learn_sigma=True,
        **_shape(size),
    )
    about = f"DiT-{size.upper()}/{patch}, classes of ImageNet"
    return Preset(about, config, size=(1, 256, 256), strides=(1, 8, 8))


def _vit(config: ViTConfig) -> Preset:
    return Preset("ViT, a classifier of images", config, size=(1, *config.size), classes=CLASSES)


def _vivit(config: ViViTConfig) -> Preset:
    about = "ViViT with a factorised encoder, a classifier of videos"
    return Preset(about, config, size=(config.frames, *config.size), classes=CLASSES)


PRESETS: dict[str, Preset] = {
    "stdit-tiny/2": _tiny(),
    **{f"stdit-{size}/2": _own(size) for size in _SIZES},
    "opensora-v1-xl/2": _opensora_v1(),
    "opensora-v3-xl/2": _opensora_v3(),
    **{f"dit-{size}/{patch}": _dit(size, patch) for size in _SIZES for patch in (2, 4, 8)},
    **{name: _vit(config) for name, config in VIT_PRESETS.items()},
    **{name: _vivit(config) for name, config in VIVIT_PRESETS.items()},
}
"""Presets by name."""


def find_preset(name: str) -> Preset:
    """The preset of that name, in any case. Raises UserError that names the nearest one."""
    found = PRESETS.get(name.lower())
    if found is None:
        nearest = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"no model {name!r}, neither preset nor folder: {hint}'kineo model list' has all presets")
    return found
