"""The second and last read of a source: its kept clips at the size and rate of their buckets, as H.264."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

# Part of the key under which an encoded clip is kept: raise it when the frames or bytes change.
ENCODE_VERSION = 2


@dataclass(frozen=True)
class ClipJob:
    """One clip to write: frames [start_frame, end_frame) of its source, shown from start_s to end_s."""

    clip_id: str
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    crop: tuple[int, int, int, int]
    """x, y, width, height in source pixels."""
    bucket: str
    fps: float
    """Of the frames written; 1 for an image."""

    def key(self, encode: Encode) -> str:
        """Names the clip's bytes: equal keys mean equal bytes."""
        how = [encode.crf, encode.preset]
        return f"{self.clip_id}-{digest([ENCODE_VERSION, vars(self), how])[:16]}"

    def frames(self, times: np.ndarray) -> list[int]:
        """Indices of the source's frames to write, ascending; ``times`` as in Analysis."""
        bucket = Bucket.parse(self.bucket)
        if bucket.is_image:
            return [self.start_frame]
        begin, _ = used_span(self.start_s, self.end_s, bucket, self.fps)
        shown = nearest_frames(times[self.start_frame : self.end_frame], sample_times(begin, bucket.frames, self.fps))
        return [int(index) for index in self.start_frame + shown]


def used_span(start_s: float, end_s: float, bucket: Bucket, fps: float) -> tuple[float, float]:
    """The seconds of a clip that the bucket's frames cover: the middle, farthest from the cuts on both
    sides."""
    used = min(bucket.seconds(fps), end_s - start_s)
    begin = start_s + (end_s - start_s - used) / 2
    return begin, begin + used


def crop_for(content: Sequence[int], bucket: str) -> tuple[int, int, int, int]:
    """What the bucket shows of the picture ``content``: x, y, width, height in source pixels."""
    x, y, width, height = cover_crop(content[2], content[3], Bucket.parse(bucket))
    return content[0] + x, content[1] + y, width, height


def plan_clip(clip: dict[str, Any], fps: float) -> ClipJob:
    """The job of a kept row of the clips table."""
    image = Bucket.parse(clip["bucket"]).is_image
    names = ("clip_id", "start_frame", "end_frame", "start_s", "end_s", "bucket")
    return ClipJob(**{name: clip[name] for name in names}, crop=tuple(clip["crop"]), fps=1.0 if image else fps)


def encode_clips(
    path: str,
    jobs: list[dict[str, Any]],
    size: tuple[int, int],
    deinterlace: bool,
    limits: dict[str, Any],
    encode: dict[str, Any],
) -> dict[str, str]:
    """clip_id -> base64 of its mp4, for the ``jobs`` whose frames could all be decoded. Runs in the guarded
    child.

    Args:
        jobs: ClipJobs as dicts with ``frames``, the indices to write.
        size: width and height of the source's frames as shown.
        deinterlace: whether the fields of a frame are of different times.

    Raises MediaFault when the file no longer opens.
    """
    cv2.setNumThreads(1)
    return {
        clip["clip_id"]: base64.b64encode(encode_h264(pixels, clip["fps"], **encode)).decode()
        for clip, pixels in _gather(path, jobs, (size[0], size[1]), deinterlace, MediaLimits(**limits))
    }


def _gather(
    path: str, clips: list[dict[str, Any]], size: tuple[int, int], deinterlace: bool, limits: MediaLimits
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Decode once and yield each clip with its frames, uint8 (T, H, W, 3), as soon as its last one has
    come."""
    wanted: dict[int, list[dict[str, Any]]] = {}
    for clip in clips:
        for index in dict.fromkeys(clip["frames"]):
            wanted.setdefault(index, []).append(clip)
    last = max(wanted)
    have: dict[str, dict[int, np.ndarray]] = {clip["clip_id"]: {} for clip in clips}
    with open_video(path, limits) as (container, stream, probe):
        for index, frame in enumerate(Decoding(container, stream, probe, limits, deinterlace=deinterlace)):
            if index not in wanted:
                continue
            full = rgb(frame)
            if full.shape[1::-1] != size:  # the size may change in mid-stream
                full = cv2.resize(full, size, interpolation=cv2.INTER_AREA)
            for clip in wanted[index]:
                have[clip["clip_id"]][index] = fit(full, clip)
                if index == clip["frames"][-1]:
                    frames = have.pop(clip["clip_id"])
                    yield clip, np.stack([frames[i] for i in clip["frames"]])
            if index == last:
                return


def fit(image: np.ndarray, clip: dict[str, Any]) -> np.ndarray:
    """Crop ``image`` (H, W, 3) as the clip says and shrink it to the size of its bucket."""
    bucket = Bucket.parse(clip["bucket"])
    x, y, width, height = clip["crop"]
    crop = image[y : y + height, x : x + width]
    return cv2.resize(crop, (bucket.width, bucket.height), interpolation=cv2.INTER_AREA)


def encoded_path(run: Path, key: str) -> Path:
    """Where the clip of that key is kept; a file of the same name with .failed says why there is none."""
    return run / "work" / "clips" / key[:2] / f"{key}.mp4"


def failed_path(run: Path, key: str) -> Path:
    return encoded_path(run, key).with_suffix(".failed")
