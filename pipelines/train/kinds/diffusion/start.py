"""Fine-tuning: a run that starts from the weights of a checkpoint, and has its model, process and autoencoder."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kineograph.config import parse_config
from kineograph.errors import UserError
from kineograph.models.dit import DiTShape
from kineograph.models.stdit import STDiTShape
from kineograph.store.checkpoints import read_config, resolve_checkpoint
from kineograph.store.manifest import AUTOENCODER_FOLDER, Manifest
from pipelines.train.kinds.diffusion.config import ConditioningConfig, DiffusionRecipe, SampleConfig

OF_THE_DATA = ("in_channels", "text_width")
"""Keys of a checkpoint's model that a recipe does not have."""


def with_start(config: DiffusionRecipe) -> DiffusionRecipe:
    """The recipe with the model of the checkpoint that it starts from, and where it is silent with its process, autoencoder
    and sampling. Raises UserError when there is no such checkpoint, or the recipe wants another model."""
    if config.start is None:
        return config
    path = resolve_checkpoint(config.start)
    saved = read_config(path)
    if saved.get("kind") != "diffusion":
        raise UserError(f"start {path} is a checkpoint of kind {saved.get('kind')}, not of diffusion")
    model = {key: value for key, value in saved["model"].items() if key not in OF_THE_DATA}
    if "model" in config.model_fields_set and not _is_model(config.model, model):
        raise UserError("a recipe with 'start' has the model of its checkpoint: leave out 'model'")
    raw = config.model_dump(mode="json")
    raw["start"], raw["model"] = str(path), model
    if "diffusion" not in config.model_fields_set:
        raw["diffusion"] = saved["diffusion"]
    if "vae" not in config.model_fields_set:
        raw["vae"] = {"kind": "folder", "path": str(path / AUTOENCODER_FOLDER)}
    is_same_process = raw["diffusion"]["kind"] == saved["diffusion"].get("kind")
    sampling = saved.get("sampling", {})
    raw["samples"] = _samples(config.samples, sampling, is_same_process)
    raw["conditioning"] = {"image_fps": saved.get("image_fps", 0.0), **_conditioning(config.conditioning, sampling)}
    return parse_config(raw, DiffusionRecipe, name=f"start {path}")


def _is_model(shape: STDiTShape | DiTShape, saved: dict[str, Any]) -> bool:
    """Whether ``saved``, of a checkpoint that may be older than some keys, is ``shape``."""
    return saved.get("kind") == shape.kind and type(shape).model_validate(saved) == shape


def _samples(config: SampleConfig, sampling: dict[str, Any], is_same_process: bool) -> dict[str, Any]:
    """A raw recipe's samples with what a checkpoint is sampled with, where it is silent; its sampler is for a process of
    the same kind."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    if "steps" in sampling:
        raw.setdefault("steps", sampling["steps"])
    raw["guidance"] = {**sampling.get("guidance", {}), **raw.get("guidance", {})}
    if is_same_process and "name" not in raw.get("sampler", {}):  # another one has keys of its own
        raw["sampler"] = {**sampling.get("sampler", {}), **raw.get("sampler", {})}
    return raw


def _conditioning(config: ConditioningConfig, sampling: dict[str, Any]) -> dict[str, Any]:
    """A raw recipe's conditioning, where it is silent such that what a checkpoint is sampled with is trained."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    if "first_frame_first" in sampling:
        raw.setdefault("factorised", sampling["first_frame_first"])
    if not raw.get("factorised", True):
        raw.setdefault("tasks", {"text": 1.0, "image": 0.0})
    return raw


def check_start(start: str, channels: int, manifest: Manifest) -> None:
    """Raise UserError when the checkpoint's model does not take latents of ``channels`` or the captions of the dataset."""
    saved = read_config(resolve_checkpoint(start))
    encoder, knows = manifest.text_encoder, saved["text_encoder"]
    if encoder.name != knows["name"]:
        raise UserError(
            f"the dataset has captions encoded by {encoder.name}, and start {start} knows those of {knows['name']}: "
            "curate with that text encoder"
        )
    taken = saved["model"]["in_channels"]
    if channels != taken:
        raise UserError(f"the autoencoder has {channels} channels, and start {start} takes {taken}: leave out 'vae'")


def load_start(start: str, model: nn.Module) -> None:
    """Give ``model`` the averaged weights of a checkpoint. Raises UserError when they do not fit."""
    path = resolve_checkpoint(start)
    try:
        model.load_state_dict(load_file(path / "ema.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"start {path} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
