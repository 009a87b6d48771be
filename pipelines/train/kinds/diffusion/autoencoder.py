"""Which autoencoder a diffusion run uses: the recipe's, or that of the dataset's latents where they are of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.vae import (
    Autoencoder,
    PatchPCA,
    PatchPCAConfig,
    fingerprint,
    load_autoencoder,
    save_autoencoder,
    to_unit_range,
)
from kineograph.progress import say
from kineograph.store.loader import ClipLoader
from kineograph.store.manifest import AUTOENCODER_FOLDER, Manifest
from kineograph.store.shards import ShardReader
from pipelines.train.dataset import Dataset
from pipelines.train.kinds.diffusion.config import FittedVAE, FolderVAE


class Chosen(NamedTuple):
    """What is known of a run's autoencoder, which may still have to be made."""

    kind: str
    channels: int
    strides: tuple[int, int, int]
    """Frames, rows, columns of pixels per latent."""
    digest: str
    """Its fingerprint, "" where it is still to be fitted."""
    reads_latents: bool
    """Whether the dataset holds its latents, which are then read in place of videos."""


def choose_autoencoder(vae: FittedVAE | FolderVAE, manifest: Manifest) -> Chosen:
    """What ``vae`` of a recipe means for a dataset. Raises UserError when that has no videos and other latents, or a folder
    cannot be loaded."""
    made = manifest.autoencoder
    if isinstance(vae, FolderVAE):
        chosen = describe_autoencoder(load_autoencoder(vae.path), manifest)
    else:
        shape = (vae.kind, vae.channels, (vae.temporal_stride, vae.stride, vae.stride))
        fits = made is not None and (made.kind, made.channels, made.strides) == shape
        chosen = Chosen(*shape, digest=made.digest if made and fits else "", reads_latents=fits)
    if made is not None and not chosen.reads_latents and not manifest.video:
        raise UserError(
            f"the dataset holds latents of {made.kind} with {made.channels} channels and strides {made.strides}, and no "
            f"videos; the recipe's autoencoder is {_name(vae)} with {chosen.channels} and {chosen.strides}: change the "
            "recipe's vae, or encode.latents of the curation"
        )
    return chosen


def describe_autoencoder(vae: Autoencoder, manifest: Manifest) -> Chosen:
    """An autoencoder that is there, for a dataset."""
    made, digest = manifest.autoencoder, fingerprint(vae)
    fits = made is not None and made.digest == digest
    return Chosen(vae.config.kind, vae.channels, vae.strides, digest, fits)


def check_buckets(chosen: Chosen, buckets: list[Bucket]) -> None:
    """Raise UserError when the autoencoder cannot encode one of ``buckets``."""
    frames, rows, columns = chosen.strides
    for bucket in buckets:
        if bucket.height % rows or bucket.width % columns or (bucket.frames - 1) % frames:
            raise UserError(
                f"bucket {bucket.name} does not fit the autoencoder: sides must be multiples of {rows} and {columns}, "
                f"frames 1 + a multiple of {frames}; change the recipe's vae or curate other buckets"
            )


def make_autoencoder(vae: FittedVAE | FolderVAE, chosen: Chosen, dataset: Dataset, folder: Path) -> None:
    """Write the run's autoencoder as ``folder``, once: every worker then loads the same bytes.

    Raises UserError when the one beside the dataset's latents is not theirs.
    """
    if chosen.reads_latents:
        made = autoencoder_of(dataset.reader)
    elif isinstance(vae, FolderVAE):
        made = load_autoencoder(vae.path)
    else:
        made = fit_autoencoder(vae, dataset)
    save_autoencoder(made, folder)


def fit_autoencoder(vae: FittedVAE, dataset: Dataset) -> PatchPCA:
    """Patch-PCA of training clips; says how much it keeps."""
    made = PatchPCA(PatchPCAConfig(**vae.model_dump(exclude={"fit_clips"})))
    clips = ClipLoader(dataset.reader, cache_bytes=0).load(dataset.spread_entries(vae.fit_clips))
    kept = made.fit([to_unit_range(c.picture) for c in clips])
    say(f"autoencoder fitted: {made.channels} channels keep {kept:.1%} of the pixels' variance")
    return made


def autoencoder_of(reader: ShardReader) -> Autoencoder:
    """The autoencoder of a dataset's latents. Raises UserError when the one in its folder is not theirs."""
    folder, info = reader.folder(AUTOENCODER_FOLDER), reader.manifest.autoencoder
    assert info is not None
    vae = load_autoencoder(folder)
    if fingerprint(vae) != info.digest:
        raise UserError(
            f"the autoencoder in {folder} is not the one that made the latents: "
            f"run 'kineo data decide {reader.run}' to write it again"
        )
    return vae


def _name(vae: FittedVAE | FolderVAE) -> str:
    return f"that of {vae.path}" if isinstance(vae, FolderVAE) else vae.kind
