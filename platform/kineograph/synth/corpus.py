"""Write a raw corpus with known truth: what curation and generation are examined on.

FOLDER/source_NNNNN.{mp4,png,jpg,avi} are the files; beside one that shows one scene lies ``source_NNNNN.txt``
with its caption, beside one with several ``source_NNNNN.json`` with a caption for each span of time.
``truth.json`` lists all that there is to know and is written last.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kineograph.errors import UserError
from kineograph.media.encode import encode_h264, write_mp4
from kineograph.progress import Progress
from kineograph.store.commit import committed, remove_leftovers, write_bytes, write_json, write_text
from kineograph.synth.plan import BadShares, FilePlan, Shot, SynthConfig, plan_corpus
from kineograph.synth.scene import DIRECTIONS
from kineograph.synth.spoil import foreign_bytes, plan_frames, truncate

__all__ = ["TRUTH_NAME", "BadShares", "SynthConfig", "write_corpus"]

TRUTH_NAME = "truth.json"
_SCHEMA_VERSION = 2


def write_corpus(
    folder: str | Path, config: SynthConfig, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Write the corpus of ``config`` to ``folder``; its bytes depend on ``config`` alone.

    Args:
        folder: made where it is missing. A corpus of the same config that is there whole is left as it is,
            one that was interrupted is written again.
        workers: files written at the same time, in threads; None takes the number of cores.
        progress: show progress on stderr.

    Returns a summary: folder, truth (path), files, kinds (files by kind), scenes, seconds (of video), bytes.
    Raises UserError when ``folder`` holds anything else.
    """
    folder = Path(folder)
    plans = plan_corpus(config)
    truth = _truth(config, plans)
    if not _is_complete(folder, plans, truth):
        target = next((plan.name for plan in plans if plan.kind == "video"), "video.mp4")
        first = [plan for plan in plans if plan.kind != "exact_duplicate"]
        copies = [plan for plan in plans if plan.kind == "exact_duplicate"]
        with (
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
            _Quiet() if not progress else Progress("synth", len(plans), "files") as shown,
        ):
            for batch in (first, copies):
                for _ in pool.map(lambda plan: _write_file(folder, plan, target), batch):
                    shown.update()
        write_json(folder / TRUTH_NAME, truth)
    return _summary(folder, truth)


class _Quiet:
    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        pass


def _is_complete(folder: Path, plans: list[FilePlan], truth: dict[str, Any]) -> bool:
    """Whether ``folder`` holds this corpus whole. Raises UserError when it holds something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the corpus")
    there = folder / TRUTH_NAME
    if there.is_file():
        if json.loads(there.read_text(encoding="utf-8")) == truth:
            return True
        raise UserError(f"{folder} holds a corpus of other settings: give a new folder, or delete this one")
    stems = {Path(plan.name).stem for plan in plans}
    stems.add(Path(TRUTH_NAME).stem)  # what a killed writer left of it
    strange = [path.name for path in sorted(folder.iterdir()) if path.name.split(".")[0] not in stems]
    if strange:
        raise UserError(f"{folder} holds other files ({strange[0]}): give a new or an empty folder")
    remove_leftovers(folder)
    return False


def _write_file(folder: Path, plan: FilePlan, target: str) -> None:
    path = folder / plan.name
    if plan.kind == "exact_duplicate" and plan.duplicate_of is not None:
        write_bytes(path, (folder / plan.duplicate_of).read_bytes())
    elif plan.kind == "foreign":
        write_bytes(path, foreign_bytes(plan.detail or "", target, plan.seed))
    elif plan.fps is None:
        with committed(path) as temp:
            image = Image.fromarray(next(plan_frames(plan)))
            image.save(temp, format="PNG" if path.suffix == ".png" else "JPEG", **_image_options(path))
    elif plan.detail == "no_index":
        write_bytes(path, truncate(encode_h264(plan_frames(plan), plan.fps, crf=plan.crf), plan.seed))
    else:
        write_mp4(path, plan_frames(plan), plan.fps, crf=plan.crf)
        if plan.detail == "partial":
            write_bytes(path, truncate(path.read_bytes(), plan.seed))
    _write_sidecar(path, plan)


def _image_options(path: Path) -> dict[str, Any]:
    return {} if path.suffix == ".png" else {"quality": 92}


def _write_sidecar(path: Path, plan: FilePlan) -> None:
    if len(plan.shots) > 1:
        scenes = _scenes(plan)
        spans = [{key: scene[key] for key in ("start_s", "end_s", "caption")} for scene in scenes]
        write_json(path.with_suffix(".json"), {"captions": spans})
    elif plan.shots and plan.shots[0].kind != "black":
        write_text(path.with_suffix(".txt"), plan.shots[0].caption(plan.fps is None) + "\n")


def _truth(config: SynthConfig, plans: list[FilePlan]) -> dict[str, Any]:
    return {
        "schema_version": _SCHEMA_VERSION,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "files": [_truth_of(plan) for plan in plans],
    }


def _truth_of(plan: FilePlan) -> dict[str, Any]:
    """A file's row of the truth. What cannot be read of a file that is not valid is None."""
    valid = plan.kind not in ("foreign", "truncated")
    x, y = plan.bars
    width, height = plan.inner
    scenes = _scenes(plan) if valid else []
    return {
        "path": plan.name,
        "kind": plan.kind,
        "detail": plan.detail,
        "valid": valid,
        "width": plan.width if valid else None,
        "height": plan.height if valid else None,
        "active": [x, y, width, height] if valid else None,
        "fps": float(plan.fps) if valid and plan.fps is not None else None,
        "frames": plan.num_frames if valid else None,
        "seconds": _seconds(plan.num_frames, plan.fps) if valid else None,
        "cuts": [after["start_frame"] for shot, after in zip(plan.shots, scenes[1:], strict=False) if not shot.fade],
        "transitions": _transitions(plan) if valid else [],
        "scenes": scenes,
        "duplicate_of": plan.duplicate_of,
        "offset_s": float(plan.offset) if plan.duplicate_of else None,
    }


def _transitions(plan: FilePlan) -> list[dict[str, Any]]:
    """The stretches in which one scene fades into the next."""
    spans = []
    for shot, start, end in plan.spans():
        if shot.fade and plan.fps:
            begin = max(start, math.ceil((shot.end - shot.fade) * plan.fps))
            span = {"start_frame": begin, "end_frame": end}
            spans.append({**span, "start_s": _seconds(begin, plan.fps), "end_s": _seconds(end, plan.fps)})
    return spans


def _scenes(plan: FilePlan) -> list[dict[str, Any]]:
    return [
        {
            "start_frame": start,
            "end_frame": end,
            "start_s": _seconds(start, plan.fps),
            "end_s": _seconds(end, plan.fps),
            "kind": shot.kind,
            "caption": shot.caption(plan.fps is None),
            "objects": _objects(shot),
            "flashes_per_s": round(float(plan.fps or 0) / plan.flash_period, 3) if shot.kind == "flashing" else 0.0,
            "repeats_s": _repeats(shot, plan),
        }
        for shot, start, end in plan.spans()
    ]


def _objects(shot: Shot) -> list[dict[str, str | None]]:
    if shot.kind == "black":
        return []
    return [
        {"colour": item.colour, "shape": item.shape, "direction": item.direction, "speed": item.speed}
        for item in shot.scene.objects
    ]


def _repeats(shot: Shot, plan: FilePlan) -> float | None:
    """Seconds after which the scene looks the same again: 0 where nothing moves, None for never."""
    moving = [item for item in shot.scene.objects if item.direction is not None]
    if shot.kind in ("black", "static") or not moving:
        return 0.0
    if len(moving) > 1 or shot.kind == "flashing":
        return None
    width, height = plan.inner
    way = width if DIRECTIONS[moving[0].direction or ""][0] else height
    return round(way / min(width, height) / moving[0].rate, 6)


def _seconds(frames: int, fps: Fraction | None) -> float:
    return 0.0 if fps is None else round(float(frames / fps), 6)


def _summary(folder: Path, truth: dict[str, Any]) -> dict[str, Any]:
    files = truth["files"]
    return {
        "folder": str(folder),
        "truth": str(folder / TRUTH_NAME),
        "files": len(files),
        "kinds": dict(sorted(Counter(file["kind"] for file in files).items())),
        "scenes": sum(len(file["scenes"]) for file in files),
        "seconds": round(float(np.sum([file["seconds"] or 0.0 for file in files])), 3),
        "bytes": sum((folder / file["path"]).stat().st_size for file in files),
    }
