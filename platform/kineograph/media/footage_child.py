"""What the child processes of :mod:`kineograph.media.footage` do with a file: look at it, and write its frames to a pipe.

As a program it answers one request, a message of :mod:`kineograph.media.guard` on its input, and ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import cv2
import numpy as np

from kineograph.media import guard_server
from kineograph.media.decode import Decoding, frame_times, rgb, shown_size
from kineograph.media.faults import MediaFault
from kineograph.media.footage import END, FRAME
from kineograph.media.guard import read_message
from kineograph.media.probe import MediaLimits, open_video
from kineograph.store.schema import Reason

MAX_COMMENT = 1 << 20
"""Characters of a comment that are read."""


def survey(path: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Size, times and kind of the frames of a file. Raises MediaFault."""
    with open_video(path, MediaLimits(**limits)) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, MediaLimits(**limits))
        size = (0, 0)
        for frame in decoding:
            size = size if size[0] else shown_size(frame.width, frame.height, frame.rotation)
        return {
            "width": size[0],
            "height": size[1],
            "times": frame_times(decoding).tolist(),
            "interlaced": decoding.interlaced > 0,
        }


def comment(path: str, limits: dict[str, Any]) -> str:
    """The comment tag of a container, "" where it has none. Raises MediaFault."""
    with open_video(path, MediaLimits(**limits)) as (container, _, _):
        return str(container.metadata.get("comment", ""))[:MAX_COMMENT]


def frames(
    path: str,
    limits: dict[str, Any],
    indices: Sequence[int],
    source: Sequence[int],
    crop: Sequence[int],
    size: Sequence[int],
    deinterlace: bool,
) -> Iterator[np.ndarray]:
    """Frames ``indices`` (ascending, some perhaps twice) of a file, cropped and resized: uint8 (H W 3).

    ``source`` and ``size`` are (width, height) of what is cropped and of what comes out; ``crop`` is x, y, width, height.
    Raises MediaFault, also when there are fewer frames.
    """
    wanted = list(reversed(indices))
    with open_video(path, MediaLimits(**limits)) as (container, stream, probe):
        decoding = Decoding(container, stream, probe, MediaLimits(**limits), deinterlace=deinterlace)
        for index, frame in enumerate(decoding):
            if index != wanted[-1]:
                continue
            picture = _fit(rgb(frame), source, crop, size)
            while wanted and wanted[-1] == index:
                wanted.pop()
                yield picture
            if not wanted:
                return
    raise MediaFault(Reason.CORRUPT, "it has fewer frames than when it was looked at")


def _fit(picture: np.ndarray, source: Sequence[int], crop: Sequence[int], size: Sequence[int]) -> np.ndarray:
    if picture.shape[1::-1] != tuple(source):  # the size may change in mid-stream
        picture = cv2.resize(picture, (source[0], source[1]), interpolation=cv2.INTER_AREA)
    x, y, width, height = crop
    cut = picture[y : y + height, x : x + width]
    if (width, height) == tuple(size):
        return np.ascontiguousarray(cut)
    smaller = size[0] <= width and size[1] <= height
    return cv2.resize(cut, (size[0], size[1]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def answer(request: dict[str, Any], pipe: BinaryIO) -> None:
    """Write the frames that ``request`` asks for, or what is wrong."""
    try:
        for picture in frames(**request):
            pipe.write(FRAME)
            pipe.write(picture.data)
    except BrokenPipeError:  # nobody wants more
        return
    except MediaFault as fault:
        reason, detail = fault.reason, fault.detail
    except MemoryError:
        reason, detail = Reason.CRASHED, "it needs more memory than it may use"
    except OSError as error:
        reason, detail = Reason.UNREADABLE, error.strerror or type(error).__name__
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything
        reason, detail = Reason.CRASHED, f"{type(error).__name__}: {error}"
    else:
        return
    end = json.dumps({"fault": reason.value, "detail": detail[:300]}).encode()
    pipe.write(END + len(end).to_bytes(4, "big") + end)


def serve() -> None:
    """Read the request, give up every right that decoding does not need, and answer."""
    with os.fdopen(os.dup(0), "rb") as asked:
        request = json.loads(read_message(asked))
    pipe = os.fdopen(os.dup(1), "wb")
    cv2.setNumThreads(1)
    guard_server.confine(request.pop("guard"), request.pop("caller"))
    with pipe:
        answer(request, pipe)


if __name__ == "__main__":
    serve()
