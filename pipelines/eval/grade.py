"""Grades with N and confidence intervals: the oracle's, flicker, flow loss, and the oracle's own on truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kineograph.diffusion.process import Process
from kineograph.diffusion.validation import validation_losses
from kineograph.media.geometry import Bucket
from kineograph.metrics import bootstrap
from kineograph.metrics.bootstrap import Estimate, bootstrap_mean, bootstrap_share
from kineograph.metrics.temporal import FLICKER_VERSION, flicker
from kineograph.models.vae import Autoencoder
from kineograph.store.loader import ClipLoader
from kineograph.store.shards import ClipEntry
from kineograph.synth.oracle import expected, grade
from kineograph.synth.scene import COLOURS, DIRECTIONS, SHAPES
from pipelines.eval.config import Confidence

ORACLE_VERSION = "synthetic-oracle-1"
FLOW_LOSS_VERSION = "rectified-flow-loss-1"
CHANCE = {"colour": 1 / len(COLOURS), "shape": 1 / len(SHAPES), "direction": 1 / len(DIRECTIONS)}

_VALIDATION_BATCH = 32

Score = dict[str, Any]
"""name, value, n, ci_low, ci_high, chance (None where there is none), metric_version."""
Grade = dict[str, bool | None]
"""colour, shape, direction: whether a video has what its prompt demands; None where it demands nothing."""


def score(name: str, estimate: Estimate, metric_version: str, chance: float | None = None) -> Score:
    """A score as metrics.json holds it."""
    return {
        "name": name,
        "value": estimate.value,
        "n": estimate.n,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "chance": chance,
        "metric_version": f"{metric_version}, {bootstrap.VERSION}",
    }


def oracle_grades(videos: Iterable[np.ndarray], prompts: Sequence[str]) -> list[Grade]:
    """The oracle's grade of each video, uint8 (T, H, W, 3).

    All None for a prompt that is not of its world; no direction for a single frame.
    """
    grades: list[Grade] = []
    for video, prompt in zip(videos, prompts, strict=True):
        graded: Grade = dict.fromkeys(CHANCE) if expected(prompt) is None else grade(video, prompt)
        grades.append(graded if len(video) > 1 else {**graded, "direction": None})
    return grades


def accuracy_scores(grades: Sequence[Grade], confidence: Confidence, seed: int, prefix: str = "") -> list[Score]:
    """The share of right colours, shapes and directions among the graded videos; none where N is 0."""
    scores = []
    for aspect, chance in CHANCE.items():
        hits = [bool(g[aspect]) for g in grades if g[aspect] is not None]
        if hits:
            estimate = bootstrap_share(hits, confidence=confidence.level, resamples=confidence.resamples, seed=seed)
            scores.append(score(f"{prefix}{aspect}_accuracy", estimate, ORACLE_VERSION, chance))
    return scores


def flicker_score(
    videos: Iterable[np.ndarray], confidence: Confidence, seed: int, name: str = "flicker"
) -> list[Score]:
    """Mean VBench temporal flickering of the videos with two frames or more; none where N is 0."""
    values = [flicker(video) for video in videos if len(video) > 1]
    if not values:
        return []
    estimate = bootstrap_mean(values, confidence=confidence.level, resamples=confidence.resamples, seed=seed)
    return [score(name, estimate, FLICKER_VERSION)]


def flow_losses(
    process: Process,
    model: nn.Module,
    vae: Autoencoder,
    loader: ClipLoader,
    clips: Sequence[ClipEntry],
    timesteps: Sequence[float],
) -> np.ndarray:
    """Flow loss of each clip at each timestep, (clips, timesteps), batch by batch of one bucket."""
    by_bucket: dict[str, list[int]] = defaultdict(list)
    for place, clip in enumerate(clips):
        by_bucket[clip.bucket].append(place)
    losses = np.full((len(clips), len(timesteps)), np.nan)
    device = next(model.parameters()).device
    for name in sorted(by_bucket, key=Bucket.parse):
        places = by_bucket[name]
        for start in range(0, len(places), _VALIDATION_BATCH):
            part = places[start : start + _VALIDATION_BATCH]
            batch = loader.batch([clips[p] for p in part]).to(device)
            with torch.inference_mode():
                latents = batch.latents(vae)
            conditions = (batch.text, batch.text_mask, batch.fps, batch.size)
            ids = [clips[p].clip_id for p in part]
            losses[part] = validation_losses(process, model, latents, *conditions, ids, timesteps).cpu().numpy()
    return losses


def flow_loss_score(losses: np.ndarray, confidence: Confidence, seed: int) -> Score:
    """Mean over clips of their mean loss over the timesteps; the interval is over clips."""
    estimate = bootstrap_mean(
        losses.mean(axis=1), confidence=confidence.level, resamples=confidence.resamples, seed=seed
    )
    return score("validation_loss", estimate, FLOW_LOSS_VERSION)
