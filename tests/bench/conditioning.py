"""Frame conditioning: what a trained model makes of given frames, graded by the oracle of the synthetic world.

``python -m tests.bench conditioning --checkpoint runs/demo/train`` (a model of synthetic videos, trained on every task).
Truth is rendered for the same prompts; each task gives some of its frames, and the stretch that the model made is graded,
with the frames beside it, next to what the same frames of videos made from text alone reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from kineograph.diffusion.conditioning import Task, given_frames
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.diffusion.windows import Window, block, latents_of
from pipelines.eval.grade import oracle_grades
from pipelines.eval.prompts import choose_prompts
from pipelines.eval.truth import render_truth

VIDEOS, SEED = 144, 0
LEAST_RATIO = 0.9
LEAST_FRAMES = 6
"""Of 5 frames of truth the oracle tells the direction of 93%, of 6 frames that of all."""
ASPECTS = ("colour", "direction")
CLAIM = f"With frames given, colour and direction are right at least {LEAST_RATIO} times as often as from text alone"


def measure(checkpoint: str | None = None, videos: int = VIDEOS) -> dict[str, Any]:
    """Grade ``videos`` videos for each task; not measured without a checkpoint."""
    if checkpoint is None or not Path(checkpoint).is_dir():
        return {"claim": CLAIM, "detail": "give a trained run with --checkpoint", "holds": None}
    model = TextToVideo.load(checkpoint)
    prompts = choose_prompts(videos, SEED)
    texts = [p.text for p in prompts]
    truth = np.stack(list(render_truth(texts, SEED, model.default_bucket, model.fps)))  # N T H W 3
    rows: dict[str, dict[str, Any]] = {}
    from_text = truth
    for task in get_args(Task):
        made, known = make(model, texts, [p.seed for p in prompts], truth, task)
        stretch = graded_stretch(known, truth.shape[1])
        if task == "text":
            from_text = made
        rows[task] = {
            "scores": accuracies(made[:, stretch], texts),
            "text": accuracies(from_text[:, stretch], texts),
            "truth": accuracies(truth[:, stretch], texts),
            "frames": [stretch.start, stretch.stop],
            "unchanged": bool((made[:, known] == truth[:, known]).all()),
        }
    tasks = [task for task in rows if task != "text"]
    ratios = {t: {a: rows[t]["scores"][a] / max(rows[t]["text"][a], 1e-9) for a in ASPECTS} for t in tasks}
    worst = min(min(ratio.values()) for ratio in ratios.values())
    unchanged = all(row["unchanged"] for row in rows.values())
    told = "; ".join(
        f"{task} colour {rows[task]['scores']['colour']:.3f} ({rows[task]['text']['colour']:.3f}), "
        f"direction {rows[task]['scores']['direction']:.3f} ({rows[task]['text']['direction']:.3f})"
        for task in rows
    )
    return {
        "claim": CLAIM,
        "detail": f"{videos} videos each (from text alone, same frames): {told}; worst ratio {worst:.2f}; "
        f"given frames unchanged: {unchanged}",
        "holds": worst >= LEAST_RATIO and unchanged,
        "ratios": ratios,
        "tasks": rows,
    }


def make(
    model: TextToVideo, texts: Sequence[str], seeds: Sequence[int], truth: np.ndarray, task: Task, batch: int = 36
) -> tuple[np.ndarray, list[int]]:
    """Videos (N T H W 3) in which the frames that ``task`` gives are those of ``truth``, and which those are."""
    stride, frames = model.vae.strides[0], truth.shape[1]
    whole = Window(0, 0, latents_of(frames, stride))
    # As many as the task ever gives, but at the end: before them there must be enough to see which way it moves.
    given = given_frames(task, whole.length, 0.0 if task == "extend_back" else 0.99).nonzero().flatten().tolist()
    known = [frame for latent in given for frame in block(latent, whole, stride)]
    made = []
    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        request = model.request(texts[part], seeds[part], known={frame: truth[part, frame] for frame in known})
        made.append(np.concatenate(list(model.stream(request)), axis=1))
    return np.concatenate(made), known


def graded_stretch(known: Sequence[int], frames: int) -> slice:
    """From the first to the last frame that was made, and a given one on either side: they show whether motion goes on.

    More given ones where that is too short to be graded.
    """
    made = [frame for frame in range(frames) if frame not in set(known)]
    start, stop = max(0, made[0] - 1), min(frames, made[-1] + 2)
    start = max(0, min(start, stop - LEAST_FRAMES))
    return slice(start, min(frames, max(stop, start + LEAST_FRAMES)))


def accuracies(videos: np.ndarray, texts: Sequence[str]) -> dict[str, float]:
    """The share of videos whose colour and direction are those of their prompt."""
    grades = oracle_grades(videos, texts)
    return {aspect: float(np.mean([bool(grade[aspect]) for grade in grades])) for aspect in ASPECTS}
