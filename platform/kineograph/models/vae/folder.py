"""Autoencoders on disk: our folders, and those of the diffusers library, local or from its hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import uint8

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.models.vae.architectures import (
    CAUSAL_CLASSES,
    IMAGE_CLASSES,
    Architecture,
    diffusers_class,
    prepared,
    settings_of,
)
from kineograph.models.vae.base import Autoencoder, AutoencoderConfig
from kineograph.models.vae.causal import CausalVAE, CausalVAEConfig
from kineograph.models.vae.image import ImageVAE, ImageVAEConfig
from kineograph.models.vae.patch_pca import PatchPCA, PatchPCAConfig
from kineograph.store.commit import committed, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"

KINDS: dict[str, tuple[Any, Any]] = {
    "patch_pca": (PatchPCAConfig, PatchPCA),
    "image_vae": (ImageVAEConfig, ImageVAE),
    "causal_vae": (CausalVAEConfig, CausalVAE),
}
"""``kind`` in an autoencoder's config.json -> its config and its module: where another kind of autoencoder comes in."""

AnyAutoencoderConfig = Annotated[PatchPCAConfig | ImageVAEConfig | CausalVAEConfig, Field(discriminator="kind")]
"""A field of this type in a recipe takes any kind."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def parse_autoencoder_config(raw: Any) -> AutoencoderConfig:
    """The config of whatever kind ``raw`` is. Raises pydantic's ValidationError."""
    adapter: TypeAdapter[Any] = TypeAdapter(AnyAutoencoderConfig)
    return adapter.validate_python(raw)


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """An autoencoder that is yet to be fitted or trained, on the CPU. Raises UserError when it cannot be built."""
    return KINDS[config.kind][1](config)


def save_autoencoder(vae: Autoencoder, folder: Path) -> None:
    """Write ``folder``/model.safetensors and then config.json. Raises DiskFullError."""
    with committed(folder / WEIGHTS) as temp:
        save_file({name: t.detach().cpu().contiguous() for name, t in vae.state_dict().items()}, temp)
    write_json(folder / CONFIG, vae.config.model_dump(mode="json"))


def load_autoencoder(source: str | Path) -> Autoencoder:
    """The autoencoder of ``source``, on the CPU and ready to use.

    ``source`` is a folder that :func:`save_autoencoder` wrote; a folder as the diffusers library writes it, of an
    autoencoder or of a pipeline with one under vae; or the name "org/name" of such a one on the Hugging Face hub. Only
    safetensors are read. Raises UserError, one line, when there is none, it is of an unknown kind or damaged.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and _HUB_NAME.fullmatch(str(source)):
        return _from_diffusers(str(source), _hub_config(str(source)))
    if (folder / "model_index.json").is_file() and (folder / "vae" / CONFIG).is_file():
        folder = folder / "vae"
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"no autoencoder at {folder}: give a folder with {CONFIG} and {WEIGHTS}") from error
    if not isinstance(raw, dict):
        raw = {}
    if "_class_name" in raw:
        return _from_diffusers(str(folder), raw)
    return _from_ours(folder, raw)


def fingerprint(vae: Autoencoder) -> str:
    """SHA-256 (hex) of an autoencoder's config and weights, wherever and on whichever device they are."""
    hasher = hashlib.sha256(digest(vae.config).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(uint8).numpy())
    return hasher.hexdigest()


def _from_ours(folder: Path, raw: dict[str, Any]) -> Autoencoder:
    kind = raw.get("kind")
    if kind not in KINDS:
        raise UserError(f"the autoencoder at {folder} is of kind {kind!r}; known: {', '.join(KINDS)}")
    config, module = KINDS[kind]
    try:
        vae: Autoencoder = module(config.model_validate(raw))
        vae.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError, ValidationError) as error:
        raise UserError(f"the autoencoder at {folder} is damaged: {_one_line(error)}") from error
    return vae.eval()


def _from_diffusers(source: str, raw: dict[str, Any]) -> Autoencoder:
    """The autoencoder that diffusers' own loader reads from ``source``, whose config.json is ``raw``."""
    name = raw.get("_class_name")
    if name not in IMAGE_CLASSES + CAUSAL_CLASSES:
        known = ", ".join(IMAGE_CLASSES + CAUSAL_CLASSES)
        raise UserError(f"the autoencoder at {source} is of class {name!r}; known: {known}")
    cls = diffusers_class(name)
    options: dict[str, Any] = {"subfolder": raw["_subfolder"]} if "_subfolder" in raw else {}
    try:
        model = cls.from_pretrained(
            source, use_safetensors=True, local_files_only=Path(source).exists(), low_cpu_mem_usage=False, **options
        )
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"the autoencoder at {source} cannot be loaded: {_one_line(error)}") from error
    known_settings = settings_of(cls)
    settings = {key: value for key, value in model.config.items() if key in known_settings}
    config, module = (ImageVAEConfig, ImageVAE) if name in IMAGE_CLASSES else (CausalVAEConfig, CausalVAE)
    architecture = Architecture(class_name=name, settings=json.loads(json.dumps(settings)))
    vae: Autoencoder = module(config(architecture=architecture), prepared(model))
    return vae.eval()


def _hub_config(name: str) -> dict[str, Any]:
    """config.json of an autoencoder on the hub, or of the one in a pipeline there."""
    loader = diffusers_class("AutoencoderKL")
    reason = ""
    for subfolder in (None, "vae"):
        options = {} if subfolder is None else {"subfolder": subfolder}
        try:
            raw = loader.load_config(name, **options)
        except (OSError, ValueError) as error:
            if _is_unreachable(error):
                reason = "it cannot be reached"
                break
            reason = reason or _one_line(error)
        else:
            return dict(raw) if subfolder is None else {**raw, "_subfolder": subfolder}
    raise UserError(
        f"no autoencoder {name!r}: there is no such folder, and the Hugging Face hub did not give it ({reason}); "
        "download it and give its folder"
    )


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether the hub was not reached, which diffusers reports as a file that is missing there."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
