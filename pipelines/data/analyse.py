"""The one pass over a source: decode every frame once and measure all that later decisions need.

Runs in the guarded child. What it returns is scores and no decision, so that thresholds can change without it.
"""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from kineograph.media.decode import Decoding, frame_times, shown_size, small_planes
from kineograph.media.probe import MediaLimits, open_video
from pipelines.data.duplicates.fingerprint import Fingerprints
from pipelines.data.measures import BlurSamples, FrameScores, MotionSamples, SampledFrames, to_json

# Part of the key under which an analysis is kept: raise it when a measure changes.
ANALYSIS_VERSION = 4
# Long side in pixels of the frames that are measured, and of those whose blur is.
SMALL_SIDE = 160
BLUR_SIDE = 320


def analyse(
    path: str, limits: dict[str, Any], side: int = 384, per_second: float = 1.0, tiny: bool = False
) -> dict[str, Any]:
    """Probe and measure the file at ``path``; JSON-able, read back by :class:`pipelines.data.signals.Analysis`.

    Args:
        limits: a MediaLimits as dict.
        side: long side of the sampled frames in pixels.
        per_second: how many of them.
        tiny: also keep every frame at 48 x 27 for the transition model.

    Raises MediaFault.
    """
    cv2.setNumThreads(1)
    with open_video(path, MediaLimits(**limits)) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, MediaLimits(**limits))
        scores, motion, blur, prints = FrameScores(), MotionSamples(), BlurSamples(), Fingerprints()
        samples, tiny_video = SampledFrames(side, per_second), _tiny_video() if tiny else None
        shown, now = (0, 0), 0.0
        for index, frame in enumerate(decoding):
            # Stamps out of order are mended when all are known; until then time only runs forward.
            now = max(now, decoding.pts[-1] or now)
            planes = small_planes(frame, SMALL_SIDE)
            if index == 0:
                shown = shown_size(frame.width, frame.height, frame.rotation)
                first_size = planes.shape[2], planes.shape[1]
            elif planes.shape[2:0:-1] != first_size:  # the size may change in mid-stream
                planes = np.stack([cv2.resize(p, first_size, interpolation=cv2.INTER_AREA) for p in planes])
            scores.add(planes)
            motion.add(index, now, planes[0])
            if blur.due(now):
                blur.add(index, now, small_planes(frame, BLUR_SIDE)[0])
            prints.add(index, now, planes)
            samples.add(index, now, frame, scores.last_difference)
            if tiny_video:
                tiny_video.add(planes)
    times = frame_times(decoding)
    still = probe.still or (len(times) == 2 and probe.container in ("gif", "apng"))
    if still:
        times = np.zeros(2)
    return {
        "version": ANALYSIS_VERSION,
        "container": probe.container.partition(",")[0],
        "codec": probe.codec,
        "media_type": "image" if still else "video",
        "width": shown[0],
        "height": shown[1],
        "frames": len(times) - 1,
        "seconds": float(times[-1]),
        "interlaced": decoding.interlaced,
        "warning": decoding.warning(),
        "times": to_json(times),
        **scores.to_json(),
        **motion.to_json(),
        **blur.to_json(),
        "prints": prints.finish().to_json(),
        "samples": samples.to_json(),
        "tiny": base64.b64encode(tiny_video.finish()).decode() if tiny_video else "",
    }


def _tiny_video() -> Any:
    from pipelines.data.transitions import TinyVideo

    return TinyVideo()
