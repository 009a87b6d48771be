"""The recipes of the classifiers, trained on the truth of one synthetic corpus and judged on another of a seed unseen.

Both corpora are curated by recipe ``demo``: 32x32 and 24x40 pixels, 9 frames. Clips whose caption names no shape or
direction, or several, have no label and are left out. The checkpoint is read and asked as ``scores.learned`` of curation
does it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SEEDS, VIDEOS = (101, 202), (1500, 300)
"""Of training and of judging. A video gives one or two clips."""
LEAST = 0.95
RECIPES = {"shape": "ViT", "direction": "ViViT"}


def measure() -> dict[str, Any]:
    """Train both and have them name the labels of the corpus that they have not seen."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = [make_data(folder / str(seed), seed, videos) for seed, videos in zip(SEEDS, VIDEOS, strict=True)]
        results = {truth: trained(truth, data[0], data[1], folder / truth) for truth in RECIPES}
    told = (
        f"{RECIPES[truth]} for {truth}: {of['accuracy']:.3f} of {of['clips']} clips after {of['minutes']:.1f} minutes"
        for truth, of in results.items()
    )
    return {
        "claim": f"Trained by their recipes, the classifiers are right on {LEAST:.0%} and more of a corpus of another seed",
        "detail": "; ".join(told),
        "holds": all(of["accuracy"] >= LEAST for of in results.values()),
        **results,
    }


def make_data(folder: Path, seed: int, videos: int) -> Path:
    """A curated synthetic corpus."""
    from kineograph.synth.corpus import write_corpus
    from kineograph.synth.plan import BadShares, SynthConfig

    nothing_bad = BadShares(**dict.fromkeys(BadShares.model_fields, 0.0))
    corpus = SynthConfig(
        seed=seed,
        videos=videos,
        images=0.3,
        max_side=192,
        min_seconds=1.3,
        max_seconds=3,
        max_scenes=1,
        bad=nothing_bad,
    )
    write_corpus(folder / "raw", corpus, progress=False)
    _kineo("data", "run", "demo", "--input", folder / "raw", "--out", folder / "data")
    return folder / "data"


def trained(truth: str, seen: Path, unseen: Path, run: Path) -> dict[str, Any]:
    """Train recipe ``classifier-TRUTH`` on ``seen`` and judge it on ``unseen``."""
    began = time.monotonic()
    _kineo("train", f"classifier-{truth}", "--data", seen, "--out", run)
    minutes = (time.monotonic() - began) / 60
    return {"minutes": minutes, **judged(run, unseen)}


def judged(run: Path, data: Path) -> dict[str, Any]:
    """How often the classifier of ``run`` is right on all clips of ``data`` that have its label."""
    from kineograph.models.classifier import Classifier
    from kineograph.store.loader import ClipLoader
    from pipelines.train.kinds.classifier.confusion import confusion_matrix
    from pipelines.train.registry import open_kind, parse_train_recipe

    classifier = Classifier.load(str(run), "cpu")
    model, label = classifier.config.model.model_dump(), {"truth": classifier.config.label}
    everything = {"kind": "classifier", "steps": 1000, "label": label, "model": model, "data": {"validation_share": 0}}
    kind: Any = open_kind(parse_train_recipe(everything), data, run)
    entries = kind.dataset.spread_entries(kind.dataset.training_clips)
    clips = ClipLoader(kind.reader, cache_bytes=0).load(entries)
    found = classifier.probabilities([clip.picture.numpy() for clip in clips]).argmax(1)
    right = [kind.names[kind.class_of(entry.address)] for entry in entries]
    places = np.array([classifier.config.labels.index(name) for name in right])
    counts = confusion_matrix(places, found, len(classifier.config.labels))
    return {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "clips": int(counts.sum()),
        "labels": list(classifier.config.labels),
        "confusion": counts.tolist(),
    }


def _kineo(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "kineograph.cli.main", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kineo {' '.join(map(str, arguments))} failed: {done.stderr[-500:]}")
