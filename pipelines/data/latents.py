"""Latents of the kept clips: one autoencoder for the dataset, and what it makes of each clip that was written.

They are made from the mp4 files under work/clips, never from the sources, so that another autoencoder or dtype costs no
decoding of sources, and training from latents sees what training from videos would.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from kineograph.config import Config, digest
from kineograph.errors import Failure, UserError
from kineograph.media.clips import decode_clip
from kineograph.media.geometry import Bucket
from kineograph.store.commit import committed
from kineograph.store.manifest import AUTOENCODER_FOLDER, AutoencoderInfo

if TYPE_CHECKING:  # torch takes seconds to load, and a recipe without latents needs none
    import torch
    from torch import Tensor

    from kineograph.models.vae import Autoencoder

Item = dict[str, Any]

PATCH_PCA = "patch_pca"
# Part of the keys of fitted autoencoders and of latents: raise it when their bytes change.
LATENTS_VERSION = 2


class Latents(Config):
    """Latents of the clips in the shards."""

    vae: str = PATCH_PCA
    """``patch_pca``, fitted to this dataset's clips, or a folder with a saved autoencoder, such as vae of another run."""
    stride: int = Field(4, ge=1)
    """Of patch_pca: rows and columns of pixels per latent."""
    temporal_stride: int = Field(4, ge=1)
    """Of patch_pca: frames per latent after the first frame, which is a latent of its own."""
    channels: int = Field(16, ge=1)
    """Of patch_pca: principal components kept, at most 3·stride²."""
    fit_clips: int = Field(512, ge=1)
    """Of patch_pca: kept clips that it is fitted to, the first by their ids, which are hashes."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Of the stored latents; they are computed in float32."""
    device: str = "cpu"
    """Where clips are encoded, as torch names it."""
    batch_size: int = Field(8, ge=1)
    """Clips of one bucket that a worker takes; on a GPU they are encoded at once."""

    @model_validator(mode="after")
    def _check(self) -> Latents:
        if self.vae == PATCH_PCA and self.channels > 3 * self.stride**2:
            raise ValueError(f"channels {self.channels} is more than the {3 * self.stride**2} pixels of a patch")
        return self


@dataclass(frozen=True)
class WrittenClip:
    """A kept clip as it was written."""

    clip_id: str
    key: str
    """Of its bytes: equal keys mean equal bytes."""
    path: str
    """Of its mp4, relative to the run."""
    bucket: str


@dataclass(frozen=True)
class Encoded:
    """The latents of a dataset."""

    autoencoder: AutoencoderInfo
    keys: dict[str, str]
    """clip_id -> key of its latent, as :func:`latent_path` takes it."""


def check_latents(settings: Latents | None, buckets: Iterable[Bucket]) -> None:
    """Raise UserError, one line, when the autoencoder cannot be loaded or cannot encode one of ``buckets``."""
    if settings is None:
        return
    frames, rows, columns = _strides(settings)
    for bucket in buckets:
        if bucket.height % rows or bucket.width % columns or (bucket.frames - 1) % frames:
            raise UserError(
                f"bucket {bucket.name} does not fit the autoencoder of encode.latents: sides must be multiples of "
                f"{rows} and {columns}, frames 1 + a multiple of {frames}; change buckets or the strides"
            )


def encode_latents(
    run: Path, settings: Latents | None, clips: Sequence[WrittenClip], workers: int | None
) -> Encoded | None:
    """Make the autoencoder and the latents of ``clips`` that are not kept yet; the autoencoder is then in ``run``/vae.

    Without ``settings`` there are none, and the autoencoder that an earlier recipe left is removed.
    """
    if settings is None or not clips:
        shutil.rmtree(run / AUTOENCODER_FOLDER, ignore_errors=True)
        return None
    from kineograph.models.vae import fingerprint, load_autoencoder, save_autoencoder

    check_latents(settings, sorted({Bucket.parse(clip.bucket) for clip in clips}))
    vae = load_autoencoder(_make_autoencoder(run, settings, clips, workers))
    info = AutoencoderInfo(
        kind=vae.config.kind,
        channels=vae.channels,
        strides=vae.strides,
        dtype=settings.dtype,
        digest=fingerprint(vae),
    )
    if _fingerprint(run / AUTOENCODER_FOLDER) != info.digest:
        shutil.rmtree(run / AUTOENCODER_FOLDER, ignore_errors=True)
        save_autoencoder(vae, run / AUTOENCODER_FOLDER)
    keys = {clip.clip_id: latent_key(clip, settings, info.digest) for clip in clips}
    _encode_missing(run, settings, info.digest, [(clip, keys[clip.clip_id]) for clip in clips], workers)
    return Encoded(info, keys)


def latent_key(clip: WrittenClip, settings: Latents, autoencoder: str) -> str:
    """Names the bytes of a clip's latent: equal keys mean equal bytes."""
    # Kernels of a GPU may round otherwise than those of a CPU, and those for one batch size than those for another.
    where = ["cpu"] if settings.device == "cpu" else [settings.device.split(":")[0], settings.batch_size]
    how = [LATENTS_VERSION, autoencoder, settings.dtype, *where]
    return f"{clip.key}-{digest(how)[:16]}"


def latent_path(run: Path, key: str) -> Path:
    """Where the latent of that key is kept: safetensors with one tensor, ``latent`` (C, T, H, W)."""
    return run / "work" / "latents" / key[:2] / f"{key}.safetensors"


def read_latent(run: Path, key: str) -> Tensor:
    """The latent of that key, in the dtype of the recipe. Raises Failure when it is damaged or gone."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(latent_path(run, key))["latent"]
    except (OSError, KeyError, SafetensorError) as error:
        latent_path(run, key).unlink(missing_ok=True)
        raise Failure("the latent of a clip is damaged or gone: run the same command again") from error


def fit_autoencoder(item: Item, *, run: str, settings: Latents) -> Item:
    """Fit patch-PCA to the ``clips`` [[path, frames], ...] of ``item`` and commit it as its ``folder``."""
    import torch

    from kineograph.models.vae import PatchPCA, PatchPCAConfig, save_autoencoder

    torch.set_num_threads(1)  # how many there are may change the last bits
    shape = settings.model_dump(include={"stride", "temporal_stride", "channels"})
    vae = PatchPCA(PatchPCAConfig(**shape))
    kept = vae.fit(_Videos(Path(run), item["clips"]))
    save_autoencoder(vae, Path(run) / item["folder"])
    return {"variance_kept": kept}


def encode_batch(item: Item, *, run: str, autoencoder: str, settings: Latents) -> Item:
    """Commit the latents of the ``clips`` [[path, frames, key], ...] of ``item``, which share a bucket.

    ``autoencoder`` is the fingerprint of the one in ``run``/vae.
    """
    from safetensors.torch import save_file

    videos = list(_Videos(Path(run), [(path, frames) for path, frames, _ in item["clips"]]))
    vae = _loaded(str(Path(run) / AUTOENCODER_FOLDER), autoencoder, settings.device)
    latents = encode_videos(vae, videos, settings)
    for (path, _, key), latent in zip(item["clips"], latents, strict=True):
        if not latent.isfinite().all():
            raise Failure(f"the latent of {path} is no number in {settings.dtype}: set encode.latents.dtype=float32")
        with committed(latent_path(Path(run), key), durable=False) as temp:
            save_file({"latent": latent}, temp)
    return {"clips": len(latents)}


def encode_videos(vae: Autoencoder, videos: Sequence[Tensor], settings: Latents) -> list[Tensor]:
    """Latents (C, T, H, W) of ``videos`` (each 3 T H W in [-1, 1]), which share a bucket, on the CPU in the wanted dtype.

    A clip's bits do not depend on its neighbours: a CPU takes one clip at a time, a GPU always a full batch, of which the
    last is filled up, so that the same kernels run.
    """
    import torch

    size = 1 if settings.device == "cpu" else settings.batch_size
    dtype: torch.dtype = getattr(torch, settings.dtype)
    latents: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(videos), size):
            part = list(videos[start : start + size])
            filled = torch.stack(part + part[-1:] * (size - len(part)))
            encoded = vae.encode(filled.to(settings.device))[: len(part)]
            latents.extend(latent.to(dtype).cpu().contiguous() for latent in encoded)
    return latents


def _make_autoencoder(run: Path, settings: Latents, clips: Sequence[WrittenClip], workers: int | None) -> Path:
    """The folder of the autoencoder that is wanted: the one named, or under work the one fitted to these clips."""
    if settings.vae != PATCH_PCA:
        return Path(settings.vae).expanduser()
    chosen = sorted(clips, key=lambda clip: clip.clip_id)[: settings.fit_clips]
    shape = [settings.stride, settings.temporal_stride, settings.channels]
    key = digest([LATENTS_VERSION, PATCH_PCA, shape, [clip.key for clip in chosen]])
    folder = Path("work") / "vae" / key[:16]
    if not _fingerprint(run / folder):
        from pipelines.data.stages import Resources, run_stage

        item = {"folder": str(folder), "clips": [(clip.path, Bucket.parse(clip.bucket).frames) for clip in chosen]}
        # One CPU: it decodes and multiplies on one thread.
        function = partial(fit_autoencoder, run=str(run.resolve()), settings=settings)
        run_stage(run, "fitted", "autoencoders", [item], function, Resources(cpus=1), workers)
    return run / folder


def _encode_missing(
    run: Path, settings: Latents, autoencoder: str, clips: Sequence[tuple[WrittenClip, str]], workers: int | None
) -> None:
    of_bucket: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for clip, key in sorted(clips, key=lambda pair: pair[0].clip_id):
        if not latent_path(run, key).is_file():
            of_bucket[clip.bucket].append((clip.path, Bucket.parse(clip.bucket).frames, key))
    items = [
        {"clips": missing[start : start + settings.batch_size]}
        for _, missing in sorted(of_bucket.items())
        for start in range(0, len(missing), settings.batch_size)
    ]
    if not items:
        return
    from pipelines.data.stages import Resources, run_stage

    # One CPU: a clip is decoded and encoded by one thread; on a GPU the CPU feeds it.
    resources = Resources(cpus=1, gpus=1.0 if settings.device.startswith("cuda") else 0.0)
    function = partial(encode_batch, run=str(run.resolve()), autoencoder=autoencoder, settings=settings)
    run_stage(run, "encoded latents", "batches", items, function, resources, workers)


class _Videos:
    """The clips [[path, frames], ...] of a run as (3 T H W) in [-1, 1], decoded each time they are gone through."""

    def __init__(self, run: Path, clips: Sequence[Sequence[Any]]) -> None:
        self.run, self.clips = run, clips

    def __iter__(self) -> Iterator[Tensor]:
        import torch

        from kineograph.models.vae import to_unit_range

        for path, frames in self.clips:
            yield to_unit_range(torch.from_numpy(_decode(self.run / path, frames)))


def _decode(path: Path, frames: int) -> Any:
    try:
        return decode_clip(path.read_bytes(), frames)
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise Failure(f"{path} is damaged or gone: run the same command again") from error


def _strides(settings: Latents) -> tuple[int, int, int]:
    if settings.vae == PATCH_PCA:
        return settings.temporal_stride, settings.stride, settings.stride
    from kineograph.models.vae import load_autoencoder

    return load_autoencoder(Path(settings.vae).expanduser()).strides


def _fingerprint(folder: Path) -> str:
    """Of the autoencoder in ``folder``; "" when there is none."""
    from kineograph.models.vae import fingerprint, load_autoencoder

    try:
        return fingerprint(load_autoencoder(folder))
    except UserError:
        return ""


@lru_cache(maxsize=1)
def _loaded(folder: str, autoencoder: str, device: str) -> Autoencoder:
    """The autoencoder of a run, loaded once per process: Ray keeps a stage's processes between its tasks."""
    import torch

    from kineograph.models.vae import fingerprint, load_autoencoder

    torch.set_num_threads(1)
    vae = load_autoencoder(folder)
    if fingerprint(vae) != autoencoder:
        raise Failure(f"{folder} was changed while its latents were made: run the same command again")
    return vae.to(device)
