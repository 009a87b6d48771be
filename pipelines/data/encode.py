"""The second and last read of a source: its kept clips at the size and rate of their buckets, as H.264."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kineograph.config import digest
from kineograph.media.decode import Decoding, rgb
from kineograph.media.encode import encode_h264
from kineograph.media.geometry import Bucket, cover_crop, nearest_frames, sample_times
from kineograph.media.probe import MediaLimits, open_video
from pipelines.data.config import Encode
from pipelines.data.signals import Analysis

# Part of the key under which an encoded clip is kept: raise it when the frames or bytes change.
ENCODE_VERSION = 1


@dataclass(frozen=True)
class ClipJob:
    """One clip to write. ``frames`` are the source's frame indices, ascending, one for each frame written."""

    clip_id: str
    frames: tuple[int, ...]
    width: int
    height: int
    bucket: str
    fps: float

    def key(self, encode: Encode) -> str:
        """Names the clip's bytes: equal keys mean equal bytes."""
        return f"{self.clip_id}-{digest([ENCODE_VERSION, asdict(self), encode.model_dump()])[:16]}"


def used_span(start_s: float, end_s: float, bucket: Bucket, fps: float) -> tuple[float, float]:
    """The seconds of a clip that the bucket's frames cover: the middle, farthest from the cuts on both
    sides."""
    used = min(bucket.seconds(fps), end_s - start_s)
    begin = start_s + (end_s - start_s - used) / 2
    return begin, begin + used


def plan_clip(clip: dict[str, Any], analysis: Analysis, fps: float) -> ClipJob:
    """The job of a kept row of the clips table."""
    bucket = Bucket.parse(clip["bucket"])
    start, end = clip["start_frame"], clip["end_frame"]
    if bucket.is_image:
        frames: tuple[int, ...] = (start,)
    else:
        begin, _ = used_span(clip["start_s"], clip["end_s"], bucket, fps)
        times = sample_times(begin, bucket.frames, fps)
        chosen = start + nearest_frames(analysis.times[start:end], times)
        frames = tuple(int(index) for index in chosen)
    return ClipJob(
        clip["clip_id"], frames, analysis.width, analysis.height, bucket.name, 1.0 if bucket.is_image else fps
    )


def encode_clips(
    path: str, jobs: list[dict[str, Any]], limits: dict[str, Any], encode: dict[str, Any]
) -> dict[str, str]:
    """clip_id -> base64 of its mp4, for the ``jobs`` whose frames could all be decoded. Runs in the guarded
    child.

    Raises MediaFault when the file no longer opens.
    """
    cv2.setNumThreads(1)
    clips = [ClipJob(**{**job, "frames": tuple(job["frames"])}) for job in jobs]
    settings = Encode(**encode)
    return {
        clip.clip_id: base64.b64encode(encode_h264(pixels, clip.fps, crf=settings.crf, preset=settings.preset)).decode()
        for clip, pixels in _gather(path, clips, MediaLimits(**limits))
    }


def _gather(path: str, clips: list[ClipJob], limits: MediaLimits) -> Iterator[tuple[ClipJob, np.ndarray]]:
    """Decode once and yield each clip with its frames, uint8 (T, H, W, 3), as soon as its last one has
    come."""
    wanted: dict[int, list[ClipJob]] = {}
    for clip in clips:
        for index in dict.fromkeys(clip.frames):
            wanted.setdefault(index, []).append(clip)
    last = max(wanted)
    have: dict[str, dict[int, np.ndarray]] = {clip.clip_id: {} for clip in clips}
    with open_video(path, limits) as (container, stream, probe):
        for index, frame in enumerate(Decoding(container, stream, probe, limits)):
            if index not in wanted:
                continue
            full = rgb(frame)
            for clip in wanted[index]:
                have[clip.clip_id][index] = fit(full, clip)
                if index == clip.frames[-1]:
                    frames = have.pop(clip.clip_id)
                    yield clip, np.stack([frames[i] for i in clip.frames])
            if index == last:
                return


def fit(image: np.ndarray, clip: ClipJob) -> np.ndarray:
    """Crop ``image`` (H, W, 3) around its centre to the bucket's aspect and shrink it to the bucket's
    size."""
    bucket = Bucket.parse(clip.bucket)
    if image.shape[:2] != (clip.height, clip.width):  # the size may change in mid-stream
        image = cv2.resize(image, (clip.width, clip.height), interpolation=cv2.INTER_AREA)
    x, y, width, height = cover_crop(clip.width, clip.height, bucket)
    crop = image[y : y + height, x : x + width]
    return cv2.resize(crop, (bucket.width, bucket.height), interpolation=cv2.INTER_AREA)


def encoded_path(run: Path, key: str) -> Path:
    """Where the clip of that key is kept; a file of the same name with .failed says why there is none."""
    return run / "work" / "clips" / key[:2] / f"{key}.mp4"


def failed_path(run: Path, key: str) -> Path:
    return encoded_path(run, key).with_suffix(".failed")
