"""To make a video again: what its file says of it, where nothing else is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kineograph import __version__
from kineograph.diffusion.request import frames_in
from kineograph.errors import UserError
from kineograph.generation.asked import Asked
from kineograph.generation.given import find_given
from kineograph.generation.settings import Settings, read_digest
from kineograph.progress import say
from kineograph.store.checkpoints import resolve_checkpoint


def like(asked: Asked, settings: Settings) -> Asked:
    """``asked`` with what it does not say as in the ``settings`` of the video ``asked.like``.

    Files that were given lie beside that video or in the current folder; any option that gives frames replaces them all.
    Raises UserError where one of them, or the checkpoint, is not what it was.
    """
    assert asked.like is not None
    if settings.kineograph != __version__:
        say(f"{asked.like} was made by version {settings.kineograph}, this is {__version__}: the video may differ")
    tiling = settings.vae_tiling
    found: dict[str, Any] = {
        "weights": settings.weights,
        "dtype": settings.dtype,
        "vae_tiling": None if tiling is None else f"{tiling.size}:{tiling.overlap}",
        "negative_prompt": settings.negative_prompt,
        "size": f"{settings.height}x{settings.width}",
        "fps": settings.fps,
        "window": settings.window,
        "overlap": settings.overlap,
    }
    if asked.checkpoint is None:
        found["checkpoint"] = _checkpoint(asked.like, settings)
    if not asked.prompt and asked.prompts is None:
        found["prompt"] = (settings.prompt,)
    if asked.seeds is None:
        found["seed"] = settings.seed
    fps = settings.fps if asked.fps is None else asked.fps
    if not asked.gives_frames:
        found |= find_given(settings.given, [asked.like.parent, Path()])
        if settings.given.fill_seconds is not None:
            start, stop = settings.given.fill_seconds
            found["fill"] = (found["fill"], f"{start!r}:{stop!r}")
        found["loop"] = settings.given.loop
    adds_video = asked.gives_frames and any((asked.video, asked.video_end, asked.fill))
    if asked.seconds is None and "fill" not in found and not adds_video:
        found["frames"] = frames_in(settings.frames / settings.fps, fps)
    return asked.model_copy(update={name: value for name, value in found.items() if not asked.says(name)})


def _checkpoint(video: Path, settings: Settings) -> Path:
    path = resolve_checkpoint(settings.checkpoint.path)
    if read_digest(path) != settings.checkpoint.digest:
        raise UserError(f"checkpoint {path} is not the one that made {video} any more: give --checkpoint")
    return path
