"""What a run is made of before its first step: the clips, the plan, the autoencoder, the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig, fingerprint, load_autoencoder, to_unit_range
from kineograph.store.checkpoints import read_config
from kineograph.store.commit import committed
from kineograph.store.loader import ClipLoader
from kineograph.store.manifest import AUTOENCODER_FOLDER, Manifest
from kineograph.store.shards import ClipEntry, ShardReader
from kineograph.store.split import split_validation
from kineograph.store.tensors import unpack
from pipelines.train.config import TrainConfig
from pipelines.train.plan import TrainingPlan

TEXT_FIT_CAPTIONS = 4096
"""Captions, at most, that the model's text norm is fitted on: enough for the covariance of a 384-d encoder."""


@dataclass(frozen=True)
class Dataset:
    """The clips of a curation run, split and planned."""

    reader: ShardReader
    training: list[ClipEntry]
    validation: list[ClipEntry]
    plan: TrainingPlan
    from_latents: bool
    """Whether the stored latents are read, and no videos."""

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest


def open_dataset(config: TrainConfig, data: Path) -> Dataset:
    """Read the manifest and the ids of ``data`` and plan over them. Raises UserError when there is nothing to train on."""
    reader = ShardReader(data)
    from_latents = reads_latents(config, reader.manifest)
    training, validation = split_validation(reader.index(), config.data.validation_share)
    plan = TrainingPlan(training, config.seed, config.batch.videos, config.batch.images)
    stride, temporal_stride = config.vae.stride, config.vae.temporal_stride
    for bucket in plan.clips:
        if bucket.height % stride or bucket.width % stride or (bucket.frames - 1) % temporal_stride:
            raise UserError(
                f"bucket {bucket.name} does not fit the autoencoder: sides must be multiples of {stride} and frames "
                f"1 + a multiple of {temporal_stride}; change vae.stride, vae.temporal_stride or curate other buckets"
            )
    return Dataset(reader, training, validation, plan, from_latents)


def reads_latents(config: TrainConfig, manifest: Manifest) -> bool:
    """Whether the dataset has latents of the shape of the recipe's autoencoder, which is then the dataset's.

    Raises UserError when they are of another shape and there are no videos.
    """
    made, wanted = manifest.autoencoder, vae_shape(config)
    if made is None:
        return False
    strides = (wanted.temporal_stride, wanted.stride, wanted.stride)
    if (made.kind, made.channels, made.strides) == (wanted.kind, wanted.channels, strides):
        return True
    if manifest.video:
        return False
    raise UserError(
        f"the dataset holds latents of {made.kind} with {made.channels} channels and strides {made.strides}, and no "
        f"videos; the recipe's autoencoder is {wanted.kind} with {wanted.channels} and {strides}: change vae.channels, "
        "vae.stride, vae.temporal_stride, or encode.latents of the curation"
    )


def prepare_components(run: Path, config: TrainConfig, dataset: Dataset) -> float:
    """Fit the autoencoder to training clips and write it, once, as ``run``/vae.safetensors.

    Every worker then loads the same bytes. Returns the share of the pixels' variance that it keeps, 0..1.
    """
    vae = PatchPCA(vae_shape(config))
    clips = ClipLoader(dataset.reader, cache_bytes=0).load(_spread(dataset.training, config.vae.fit_clips))
    kept = vae.fit([to_unit_range(c.picture) for c in clips])
    with committed(run / "vae.safetensors") as temp:
        save_file(vae.state_dict(), temp)
    return kept


def take_autoencoder(run: Path, dataset: Dataset) -> None:
    """Write the autoencoder of the dataset's latents as ``run``/vae.safetensors. Raises UserError when it is not theirs."""
    folder, made = dataset.reader.run / AUTOENCODER_FOLDER, dataset.manifest.autoencoder
    assert made is not None
    vae = load_autoencoder(folder)
    if fingerprint(vae) != made.digest:
        raise UserError(
            f"the autoencoder in {folder} is not the one that made the latents: "
            f"run 'kineo data decide {dataset.reader.run}' to write it again"
        )
    with committed(run / "vae.safetensors") as temp:
        save_file(vae.state_dict(), temp)


def load_vae(folder: Path, config: TrainConfig) -> PatchPCA:
    """The run's autoencoder."""
    vae = PatchPCA(vae_shape(config))
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    return vae


def build_model(config: TrainConfig, dataset: Dataset) -> STDiT:
    """The model with its seeded initial weights and its text norm fitted to the dataset's captions."""
    torch.manual_seed(config.seed)
    model = STDiT(model_shape(config, dataset.manifest))
    entries = _spread(dataset.training, TEXT_FIT_CAPTIONS)
    rows = dataset.reader.read([e.address for e in entries], ["caption", "text_embedding"])
    model.text_norm.fit(_caption_states(rows))
    return model


def model_shape(config: TrainConfig, manifest: Manifest) -> STDiTConfig:
    return STDiTConfig(
        **config.model.model_dump(), in_channels=config.vae.channels, text_width=manifest.text_encoder.width
    )


def vae_shape(config: TrainConfig) -> PatchPCAConfig:
    return PatchPCAConfig(**config.vae.model_dump(exclude={"fit_clips"}))


def checkpoint_config(config: TrainConfig, dataset: Dataset, mlflow: dict[str, Any]) -> dict[str, Any]:
    """config.json of the run's checkpoints: all that generation and evaluation need to know."""
    manifest, plan = dataset.manifest, dataset.plan
    videos = sorted((b for b in plan.clips if not b.is_image), key=lambda b: (-len(plan.clips[b]), b))
    images = sorted(b for b in plan.clips if b.is_image)
    entry = plan.clips[(videos or images)[0]][0]
    fps = dataset.reader.read([entry.address], ["fps"])[0]["fps"] or 1.0  # a second for an image, where all are
    return {
        "model": model_shape(config, manifest).model_dump(mode="json"),
        "vae": vae_shape(config).model_dump(mode="json"),
        "flow": config.flow.model_dump(mode="json"),
        "text_encoder": manifest.text_encoder.model_dump(),
        "buckets": [b.name for b in videos + images],  # the one with most clips first
        "fps": fps,
        "sampling": {
            "steps": config.samples.steps,
            "guidance_scale": config.samples.guidance_scale,
            "first_frame_first": config.conditioning.factorised,
        },
        "validation_share": config.data.validation_share,
        "plan": plan_keys(config),
        "manifest_digest": manifest.digest,
        "recipe_digest": digest(config),
        "mlflow": mlflow,
    }


def plan_keys(config: TrainConfig) -> dict[str, Any]:
    """What the order of clips depends on, besides the manifest."""
    return {"seed": config.seed, "validation_share": config.data.validation_share, **config.batch.model_dump()}


def changed_since(folder: Path, config: TrainConfig, dataset: Dataset) -> str:
    """What makes a checkpoint of an earlier start unfit to go on from, "" when nothing does."""
    saved = read_config(folder)
    if saved["manifest_digest"] != dataset.manifest.digest:
        return f"the dataset is {dataset.manifest.digest[:12]}, it was {saved['manifest_digest'][:12]}"
    parts = {
        "model": model_shape(config, dataset.manifest).model_dump(mode="json"),
        "vae": vae_shape(config).model_dump(mode="json"),
        "plan": plan_keys(config),
    }
    for part, now in parts.items():
        before = saved[part]
        for key, value in now.items():
            if before.get(key) != value:
                return f"{part}.{key} is {value}, it was {before.get(key)}"
    return ""


def _spread(entries: list[ClipEntry], most: int) -> list[ClipEntry]:
    """At most ``most`` entries, evenly spaced over all of them."""
    step = max(1, -(-len(entries) // most))
    return entries[::step]


def _caption_states(rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    by_caption = {row["caption"]: row["text_embedding"] for row in rows if row["caption"].strip()}
    return [torch.from_numpy(unpack(by_caption[c]).astype("float32")) for c in sorted(by_caption)]
