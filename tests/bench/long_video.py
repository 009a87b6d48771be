"""A minute of video in the memory of five seconds, and without visible seams: of a checkpoint, or of random weights."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SHORT_S, LONG_S, FPS = 5.0, 60.0, 24.0
PROMPT = "a red circle moving left"
STEPS = 4
LIMIT = 1.10


def measure(checkpoint: str | None = None) -> dict[str, Any]:
    """Generate both lengths in processes of their own. Seams are judged where a checkpoint is given: one at random weights
    makes noise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(checkpoint) if checkpoint else _random_checkpoint(Path(folder))
        short = _generate(path, SHORT_S, Path(folder) / "short.mp4", bool(checkpoint))
        long = _generate(path, LONG_S, Path(folder) / "long.mp4", bool(checkpoint))
        seams = judge_seams(frame_differences(Path(folder) / "long.mp4"), long.pop("seams"), long["stride"])
        drift = {"first": pixels(Path(folder) / "long.mp4", 0.0), "last": pixels(Path(folder) / "long.mp4", LONG_S - 5)}
    ratio = long["peak_mib"] / short["peak_mib"]
    detail = (
        f"peak memory {short['peak_mib']:.0f} MiB and {long['peak_mib']:.0f} MiB, ratio {ratio:.3f}; "
        f"{seams['count']} seams: {seams['above_p95']:.3f} of them above the 95th percentile of all other differences, "
        f"{seams['above_p95_of_latents']:.3f} above that of the other first frames of a latent "
        f"(chance allows {seams['allowed']:.3f}), mean difference {seams['mean_ratio']:.2f} and "
        f"{seams['mean_ratio_of_latents']:.2f} of theirs; pixels in the first 5 s {drift['first']['mean']:.1f} ± "
        f"{drift['first']['std']:.1f}, in the last {drift['last']['mean']:.1f} ± {drift['last']['std']:.1f}"
    )
    return {
        "claim": f"{LONG_S:g} s take at most {LIMIT:.2f} times the memory of {SHORT_S:g} s, and seams do not show",
        "detail": detail if checkpoint else f"{detail}; random weights, so only memory is judged",
        "holds": ratio <= LIMIT and (not checkpoint or seams["above_p95_of_latents"] <= seams["allowed"]),
        "ratio": ratio,
        "short": short,
        "long": long,
        "seams": seams,
        "drift": drift,
    }


def judge_seams(differences: np.ndarray, seams: list[int], stride: int) -> dict[str, float]:
    """How the differences (frames - 1,) of the frames ``seams`` to those before them compare to the others: to all of
    them, and, like with like, to those of frames that begin a latent of ``stride`` frames, as seams do."""
    number = np.arange(1, len(differences) + 1)
    at = np.isin(number, seams)
    found: dict[str, float] = {"count": int(at.sum())}
    for name, rest in (("", ~at), ("_of_latents", ~at & (number % stride == 1 % stride))):
        others = differences[rest]
        found[f"above_p95{name}"] = float((differences[at] > np.quantile(others, 0.95)).mean())
        found[f"mean_ratio{name}"] = float(differences[at].mean() / others.mean())
    # What 1 of 100 sets of as many ordinary differences exceeds (normal approximation).
    found["allowed"] = 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / found["count"])
    return found


def frame_differences(path: Path) -> np.ndarray:
    """Mean absolute difference, 0..255, of each frame of a video to the one before: (frames - 1,)."""
    found, before = [], None
    for frame in _frames(path):
        if before is not None:
            found.append(np.abs(frame.astype(np.int16) - before).mean())
        before = frame
    return np.array(found)


def pixels(path: Path, start_s: float, seconds: float = 5.0) -> dict[str, float]:
    """Mean and standard deviation of the pixels, 0..255, of a stretch of a video."""
    first, last = round(start_s * FPS), round((start_s + seconds) * FPS)
    stretch = np.stack([frame for number, frame in enumerate(_frames(path)) if first <= number < last])
    return {"mean": float(stretch.mean()), "std": float(stretch.std())}


def _frames(path: Path) -> Any:
    from kineograph.media.footage import Footage

    footage = Footage.open(path)
    return footage.frames(footage.height, footage.width, FPS, 0, footage.count(FPS))


def _random_checkpoint(folder: Path) -> Path:
    from tests.kineograph.tiny_checkpoint import make_checkpoint

    return make_checkpoint(folder / "train", size="64x96")


def _generate(checkpoint: Path, seconds: float, out: Path, as_trained: bool) -> dict[str, Any]:
    arguments = [str(checkpoint), str(seconds), str(out), "trained" if as_trained else "random"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.long_video", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def child(checkpoint: str, seconds: str, out: str, weights: str) -> None:
    """Generate one video and print the peak of resident memory meanwhile and the frames that begin a window.

    A window is made beforehand, so that what loads at first use counts for neither length.
    """
    from kineograph.diffusion.text_to_video import TextToVideo
    from kineograph.generation.asked import Asked
    from kineograph.generation.run import generate_with

    model = TextToVideo.load(checkpoint)
    steps = None if weights == "trained" else STEPS
    asked = Asked(out=Path(out), prompt=(PROMPT,), seconds=SHORT_S, fps=FPS, steps=steps)
    generate_with(model, asked.model_copy(update={"seconds": model.default_bucket.frames / FPS}))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (man 5 proc)
    generate_with(model, asked.model_copy(update={"seconds": float(seconds)}))
    peak_kib = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    bucket = model.bucket_for(None, float(seconds), FPS)
    windows = model.windows(model.request([PROMPT], [0], bucket, FPS))
    stride = model.vae.strides[0]
    seams = [(window.start + window.given - 1) * stride + 1 for window in windows[1:]]
    facts = {"peak_mib": int(peak_kib.split()[1]) / 1024, "windows": len(windows), "seams": seams, "stride": stride}
    print(json.dumps(facts))


if __name__ == "__main__":
    child(*sys.argv[1:])
