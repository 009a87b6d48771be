"""Decode the short clips that shards hold: mp4 bytes to frames."""

from __future__ import annotations

import io

import numpy as np


def decode_clip(video: bytes, num_frames: int) -> np.ndarray:
    """The ``num_frames`` frames of an mp4 as uint8 (T H W 3). Raises ValueError when it does not hold them."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # kept for all frames: its tables cost more than a small frame's decoding
    try:
        with av.open(io.BytesIO(video), format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # a clip is decoded sooner than threads start
            frames = [reformatter.reformat(f, format="rgb24").to_ndarray() for f in container.decode(stream)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error
    if len(frames) != num_frames:
        raise ValueError(f"it holds {len(frames)} frames, its row says {num_frames}")
    return np.stack(frames)
