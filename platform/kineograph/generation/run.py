"""`kineo generate` from what is asked to files: one video, or a folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kineograph import __version__
from kineograph.diffusion.request import MAX_FRAMES, Request, Sampling, frames_in
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.diffusion.windows import latents_of
from kineograph.errors import UserError
from kineograph.generation.asked import Asked, parse_size, parse_stretch, parse_tiling
from kineograph.generation.folder import VideoFolder
from kineograph.generation.given import SLOTS, Scene, Strips, open_strips, record_given
from kineograph.generation.like import like
from kineograph.generation.making import Making, Order, batches
from kineograph.generation.prompts import PromptRow, Take, read_prompts, takes
from kineograph.generation.render import MixedPrecision, makes_first
from kineograph.generation.settings import CheckpointRef, Settings, read_digest, read_settings
from kineograph.generation.timeline import Timeline, plan_timeline
from kineograph.media.encode import contact_sheet, write_png
from kineograph.media.geometry import Bucket
from kineograph.models.vae import Tiling
from kineograph.progress import say


def generate_videos(asked: Asked) -> dict[str, Any]:
    """Make what is asked, and return what was made. Raises UserError for what cannot be made as asked.

    One video goes to the mp4 ``out``, and its contact sheet beside it. Several go to the folder ``out``; those that are
    there as they would be made are kept.
    """
    asked.check()
    sampling = None
    if asked.like is not None:
        settings = read_settings(asked.like)
        sampling, asked = settings.sampling, like(asked, settings)
    checkpoint = _check(asked)
    model = TextToVideo.load(checkpoint, asked.device, asked.weights or "ema", _tiling(asked))
    if asked.dtype == "bf16":
        model.model = MixedPrecision(model.model)
    return generate_with(model, asked, sampling)


def generate_with(model: TextToVideo, asked: Asked, sampling: Sampling | None = None) -> dict[str, Any]:
    """What :func:`generate_videos` does once the checkpoint is loaded. What ``asked`` does not say of the sampling is as in
    ``sampling``, None as the checkpoint was trained."""
    wanted = _takes(asked)
    folder = _folder(asked, len(wanted))
    settings, scene = _plan(asked, model, asked.sampling(sampling or model.sampling))
    request = _request(settings, model)
    if folder is None:
        order = Order(_of_take(settings, wanted[0]), asked.out)
        return _one(Making(model, request, scene, asked.preview, asked.out.with_suffix(".preview.png")), order)
    orders = [Order(_of_take(settings, take), folder / take.name) for take in wanted]
    making = Making(model, request, scene, asked.preview, folder / "preview.png")
    return _several(making, VideoFolder(folder), orders, 1 if makes_first(scene) else asked.batch)


def _one(making: Making, order: Order) -> dict[str, Any]:
    sheet, settings = order.path.with_suffix(".png"), order.settings
    (kept,) = making.make([[order]])
    write_png(sheet, contact_sheet([kept], [settings.prompt]))
    return {
        "video": str(order.path),
        "contact_sheet": str(sheet),
        "seconds": settings.frames / settings.fps,
        "bucket": Bucket(settings.height, settings.width, settings.frames).name,
        **settings.model_dump(mode="json"),
    }


def _several(making: Making, folder: VideoFolder, orders: Sequence[Order], batch_size: int) -> dict[str, Any]:
    left = [order for order in orders if not folder.has(order)]
    if len(left) < len(orders):
        say(f"{len(orders) - len(left)} of {len(orders)} videos are there already")
    finished = [order for batch in batches(left, batch_size) for order in batch]
    for order, kept in zip(finished, making.make(batches(left, batch_size)), strict=True):
        folder.add(order, kept)
    return {**folder.finish(orders), "made": len(left), "skipped": len(orders) - len(left)}


def _takes(asked: Asked) -> list[Take]:
    """The videos to make: a row of prompts for each seed."""
    rows = [PromptRow(prompt=prompt) for prompt in asked.prompt]
    rows += read_prompts(asked.prompts) if asked.prompts is not None else []
    if not rows:
        raise UserError("nothing to show: give --prompt, --prompts FILE or --like FILE")
    first = asked.seed or 0
    return takes(rows, asked.seeds or range(first, first + (asked.videos or 1)))


def _folder(asked: Asked, videos: int) -> Path | None:
    """The folder that the videos go to; None for one that goes to a file. Raises UserError where neither can be."""
    out = asked.out
    if out.is_dir():
        return out
    if videos == 1 and asked.prompts is None:
        if out.suffix.lower() != ".mp4":
            raise UserError(f"--out {out}: give a name that ends in .mp4")
        return None
    if out.suffix.lower() == ".mp4" or out.exists():
        raise UserError(f"--out {out}: several videos go to a folder; give its name")
    return out


def _plan(asked: Asked, model: TextToVideo, sampling: Sampling) -> tuple[Settings, Scene]:
    """Settings of all videos, without prompt and seed, and the frames that are given."""
    bucket, stride = model.default_bucket, model.vae.strides[0]
    fps = model.fps if asked.fps is None else asked.fps
    height, width = (bucket.height, bucket.width) if asked.size is None else parse_size(asked.size)
    paths = {slot: path for slot in SLOTS if (path := getattr(asked, slot)) is not None}
    stretch = None
    if asked.fill is not None:
        paths["fill"], stretch = asked.fill[0], parse_stretch(asked.fill[1])
    strips = open_strips(paths, stretch, fps, stride)
    timeline = _timeline(asked, model, strips, fps)
    settings = Settings(
        kineograph=__version__,
        checkpoint=CheckpointRef(path=str(model.path), step=model.config.get("step"), digest=read_digest(model.path)),
        weights=asked.weights or "ema",
        dtype=asked.dtype or "fp32",
        vae_tiling=_tiling(asked),
        prompt="",
        negative_prompt=asked.negative_prompt or "",
        seed=0,
        height=height,
        width=width,
        frames=timeline.total,
        fps=fps,
        sampling=sampling,
        window=asked.window,
        overlap=asked.overlap,
        given=record_given(paths, stretch, asked.loop),
    )
    return settings, Scene(timeline, strips, height, width, fps)


def _tiling(asked: Asked) -> Tiling | None:
    return None if asked.vae_tiling is None else parse_tiling(asked.vae_tiling)


def _timeline(asked: Asked, model: TextToVideo, strips: Strips, fps: float) -> Timeline:
    front, back = strips.counts
    if asked.fill is not None:
        total = front + strips.gap + back
    elif asked.frames is not None:
        total = asked.frames
    elif asked.seconds is not None:
        total = frames_in(asked.seconds, fps)
    else:  # as trained, beside the videos that are given
        total = model.default_bucket.frames + sum(count for count in (front, back) if count > 1)
    if total > MAX_FRAMES:
        raise UserError(
            f"this video is of {total} frames, given ones included: a video has at most {MAX_FRAMES} frames"
        )
    latents = None if asked.overlap is None else latents_of(asked.overlap, model.vae.strides[0])
    window, overlap = model.window_latents(asked.window, latents)
    front = max(front, 1) if asked.loop else front
    return plan_timeline(total, model.vae.strides[0], window, overlap, front=front, back=back, loop=asked.loop)


def _request(settings: Settings, model: TextToVideo) -> Request:
    """What the videos have in common."""
    return Request(
        prompts=(),
        seeds=(),
        bucket=Bucket(settings.height, settings.width, settings.frames),
        fps=settings.fps,
        sampling=settings.sampling,
        window=settings.window,
        overlap=None if settings.overlap is None else latents_of(settings.overlap, model.vae.strides[0]),
    )


def _of_take(settings: Settings, take: Take) -> Settings:
    said = {} if take.negative_prompt is None else {"negative_prompt": take.negative_prompt}
    return settings.model_copy(update={"prompt": take.prompt, "seed": take.seed, **said})


def _check(asked: Asked) -> Path:
    """The checkpoint. Raises UserError for what is seen to be wrong before it is loaded."""
    _folder(asked, len(_takes(asked)))
    try:
        torch.empty(0, device=asked.device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        raise UserError(f"--device {asked.device}: {str(error).splitlines()[0][:200]}") from error
    if asked.checkpoint is None:
        raise UserError("give --checkpoint, a training run or one of its checkpoints")
    return asked.checkpoint
