"""The recipes of the classifiers, trained on the truth of one synthetic corpus and judged on another of a seed unseen.

Both corpora are curated by recipe ``demo``: 32x32 and 24x40 pixels, 9 frames. Clips that show no direction, or objects of
several shapes or directions, have no label and are left out. The checkpoint is read and asked as ``scores.learned`` of
curation does it.
"""

from __future__ import annotations

import json
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
        f"{RECIPES[truth]} for {truth}: {of['accuracy']:.3f} of {of['clips']} clips after {of['minutes']:.1f} minutes, "
        f"found (columns) of true {', '.join(of['labels'])} {of['confusion']}"
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
    common = set(true_labels(seen, truth)) & set(true_labels(unseen, truth))
    if common:
        raise SystemExit(f"{len(common)} clips are in both corpora")
    return {"minutes": minutes, **judged(run, unseen)}


def judged(run: Path, data: Path) -> dict[str, Any]:
    """How often the classifier of ``run`` is right on all clips of ``data`` that have its label."""
    from kineograph.models.classifier import Classifier
    from kineograph.store.loader import ClipLoader
    from kineograph.store.shards import ShardReader
    from pipelines.train.kinds.classifier.confusion import confusion_matrix

    classifier, reader = Classifier.load(run), ShardReader(data)
    names, labels = classifier.config.labels, true_labels(data, classifier.config.label)
    clips = [
        clip for clip in ClipLoader(reader, cache_bytes=0).load(reader.index()) if labels[clip.clip_id] is not None
    ]
    found = classifier.probabilities([clip.picture.numpy() for clip in clips]).argmax(1)
    right = np.array([names.index(str(labels[clip.clip_id])) for clip in clips])
    counts = confusion_matrix(right, found, len(names))
    return {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "clips": int(counts.sum()),
        "labels": list(names),
        "confusion": counts.tolist(),
    }


def true_labels(data: Path, truth: str) -> dict[str, str | None]:
    """Of every clip that was kept its label by truth.json of the corpus, and not by its caption; None where its scene has
    none, or several. Every file is one scene."""
    import pyarrow.parquet as pq

    files = json.loads((data.parent / "raw" / "truth.json").read_text())["files"]
    said = {file["path"]: {item[truth] for item in file["scenes"][0]["objects"]} for file in files}
    kept = [row for row in pq.read_table(data / "clips").to_pylist() if row["decision"] == "keep"]
    labels = {row["clip_id"]: said[Path(row["uri"]).name] for row in kept}
    return {clip: next(iter(found)) if len(found) == 1 else None for clip, found in labels.items()}


def _kineo(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "kineograph.cli.main", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kineo {' '.join(map(str, arguments))} failed: {done.stderr[-500:]}")
