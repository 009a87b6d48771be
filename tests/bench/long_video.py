"""A minute of video in the memory of five seconds, and without visible seams: of a checkpoint, or of random weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SHORT_S, LONG_S, FPS = 5.0, 60.0, 24.0
PROMPTS = (
    "a red circle moving left",
    "a blue square moving down",
    "a green triangle moving right",
    "a yellow circle moving up",
)
STEPS = 4
LIMIT = 1.10
MOST_AT_SEAMS = 1.15
"""Mean difference at seams over that at all other frames."""


def measure(checkpoint: str | None = None) -> dict[str, Any]:
    """Generate both lengths in processes of their own. Seams are judged where a checkpoint is given: one at random weights
    makes noise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(checkpoint) if checkpoint else _random_checkpoint(Path(folder))
        short = _generate(path, SHORT_S, Path(folder) / "short", bool(checkpoint))
        long = _generate(path, LONG_S, Path(folder) / "long", bool(checkpoint))
        at = long.pop("seams")
        videos = sorted((Path(folder) / "long").glob("*.mp4"))
        seams = [judge_seams(frame_differences(video), at) for video in videos]
        drift = {
            name: [pixels(video, start) for video in videos] for name, start in (("first", 0.0), ("last", LONG_S - 5))
        }
    ratio = long["peak_mib"] / short["peak_mib"]
    said = [
        f"peak memory {short['peak_mib']:.0f} MiB and {long['peak_mib']:.0f} MiB, ratio {ratio:.3f}; "
        f"{seams[0]['count']} seams in each of {len(videos)} videos"
    ]
    told = ", ".join(f"{s['mean']:.2f} ({s['others']['mean']:.2f} at others)" for s in seams)
    said.append(f"mean difference at them {told}")
    told = ", ".join(f"{s['above']:.0%}" for s in seams)
    said.append(f"above the 95th percentile of the others {told}")
    for name, rows in drift.items():
        told = ", ".join(f"{r['mean']:.0f} ± {r['std']:.0f}" for r in rows)
        said.append(f"pixels in the {name} 5 s {told}")
    if not checkpoint:
        said.append("random weights, so only memory is judged")
    return {
        "claim": f"{LONG_S:g} s take at most {LIMIT:.2f} times the memory of {SHORT_S:g} s, and the mean difference "
        f"of frames at seams is at most {MOST_AT_SEAMS:.2f} times that of all others and below their 95th percentile",
        "detail": "; ".join(said),
        "holds": ratio <= LIMIT and (not checkpoint or all(s["within"] for s in seams)),
        "ratio": ratio,
        "short": short,
        "long": long,
        "seams": seams,
        "drift": drift,
    }


def judge_seams(differences: np.ndarray, seams: list[int]) -> dict[str, Any]:
    """How the differences (frames - 1,) to the frame before are at the frames ``seams``, and at all others."""
    at = np.isin(np.arange(1, len(differences) + 1), seams)
    others, p95 = differences[~at], float(np.quantile(differences[~at], 0.95))
    return {
        "count": int(at.sum()),
        "mean": float(differences[at].mean()),
        "above": float((differences[at] > p95).mean()),
        "others": {"mean": float(others.mean()), "p95": p95},
        "within": bool(differences[at].mean() <= min(p95, MOST_AT_SEAMS * others.mean())),
    }


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
    """Generate a video of each prompt, all at once, and print the peak of resident memory meanwhile and the frames at
    seams.

    A window is made beforehand, so that what loads at first use counts for neither length.
    """
    from kineograph.diffusion.text_to_video import TextToVideo
    from kineograph.generation.asked import Asked
    from kineograph.generation.run import generate_with

    model = TextToVideo.load(checkpoint)
    steps = None if weights == "trained" else STEPS
    asked = Asked(out=Path(out), prompt=PROMPTS, batch=len(PROMPTS), seconds=SHORT_S, fps=FPS, steps=steps)
    generate_with(model, asked.model_copy(update={"seconds": model.default_bucket.frames / FPS}))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (man 5 proc)
    generate_with(model, asked.model_copy(update={"seconds": float(seconds)}))
    peak_kib = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    bucket = model.bucket_for(None, float(seconds), FPS)
    windows = model.windows(model.request(PROMPTS[:1], [0], bucket, FPS))
    stride = model.vae.strides[0]
    # Where the leading over from a window to the next begins, and where it is over.
    shared = {latent for w in windows[1:] for latent in (w.start + w.given, w.start + w.given + w.blended)}
    seams = sorted((latent - 1) * stride + 1 for latent in shared)
    facts = {"peak_mib": int(peak_kib.split()[1]) / 1024, "windows": len(windows), "seams": seams}
    print(json.dumps(facts))


if __name__ == "__main__":
    child(*sys.argv[1:])
