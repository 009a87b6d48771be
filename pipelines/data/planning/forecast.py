"""What a whole run would take: its sources listed, and a few of them put through the real pipeline."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.progress import say
from kineograph.store.manifest import SUCCESS_NAME, Manifest
from pipelines.data.config import CurateConfig
from pipelines.data.encode import encoded_path, plan_clip
from pipelines.data.inputs.locations import file_system, locate
from pipelines.data.inputs.sources import IMAGE_EXTENSIONS, Source, list_sources
from pipelines.data.ledger import read_ledger
from pipelines.data.pipeline import curate_sources
from pipelines.data.planning.estimate import PopulationItem, SampleCost, choose_sample, extrapolate
from pipelines.data.times import stage_times
from pipelines.data.work import analysis_path, samples_path

Row = dict[str, Any]

# Sizes of remote files asked for at a time; each is one small request.
ASKED_AT_ONCE = 32


def forecast(config: CurateConfig, input: str | Path | None, out: Path) -> Row:
    """Estimate of :func:`pipelines.data.planning.estimate.extrapolate` for the sources of ``input`` (else the recipe's),
    were they curated into ``out``.

    The sample is worked on in a temporary folder: beside ``out`` on a cluster, whose nodes must all see it. Raises
    UserError as :func:`pipelines.data.pipeline.curate`.
    """
    root = input or config.input
    if root is None:
        raise UserError("no input: give --input DIR, or 'input:' in the recipe")
    sources = {source.uri: source for source in list_sources(root, config.inputs).sources}
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        population = list(pool.map(lambda source: _item(source, config), sources.values()))
    sample = choose_sample(population, config.estimation.sources, config.estimation.seed)
    say(f"working on {len(sample)} of {len(population)} sources")
    disk = next(folder for folder in out.resolve().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix="kineo-estimate-", dir=disk if _on_cluster() else None) as folder:
        run = Path(folder) / "run"
        try:
            curate_sources(config, [sources[item.uri] for item in sample], run, time.monotonic())
        except UserError:
            if not (run / "sources").is_dir():  # nothing was kept: that is a finding too
                raise
        costs = _costs(run, config, sample)
    free = shutil.disk_usage(disk).free
    return extrapolate(costs, population, config.workers or _cpus(), config.estimation, free)


def _item(source: Source, config: CurateConfig) -> PopulationItem:
    location = locate(source.path, config.inputs)
    try:
        if location.scheme:
            size = int(file_system(location.scheme, config.inputs).info(location.path)["size"] or 0)
        else:
            size = os.stat(location.path).st_size
    except OSError:
        size = 0
    image = Path(source.uri).suffix.lower() in IMAGE_EXTENSIONS
    return PopulationItem(source.uri, size, "image" if image else "video")


def _costs(run: Path, config: CurateConfig, sample: list[PopulationItem]) -> list[SampleCost]:
    """What each source of the sample took and gave; work that is not told apart by source goes by its clips."""
    sources, clips = read_ledger(run)
    rows = {source["uri"]: source for source in sources}
    kept = [clip for clip in clips if clip["decision"] == "keep"]
    models = sum(stage["busy_s"] for stage in stage_times(run) if stage["stage"].startswith(("scored", "captioned")))
    shards = sum(shard.bytes for shard in Manifest.load(run).shards) if (run / SUCCESS_NAME).is_file() else 0
    costs = []
    for item in sample:
        row = rows[item.uri]
        mine = [clip for clip in kept if clip["uri"] == item.uri]
        analysis = analysis_path(run, row["source_id"], config)
        keys = [plan_clip(clip, config.buckets.fps).key(config.encode) for clip in mine]
        files = [analysis, samples_path(analysis), *(encoded_path(run, key) for key in keys)]
        strides = config.buckets.spatial_stride, config.buckets.temporal_stride
        costs.append(
            SampleCost(
                uri=item.uri,
                bytes=item.bytes,
                media_type=item.media_type,
                analysis_s=row["analysis_s"],
                encode_s=row["encode_s"],
                seconds=row["seconds"],
                clips=len(mine),
                kept_s=sum(clip["used_s"] for clip in mine),
                shard_bytes=round(shards * len(mine) / max(1, len(kept))),
                tokens=sum(Bucket.parse(clip["bucket"]).tokens(*strides) for clip in mine),
                score_s=models * sum(clip["uri"] == item.uri for clip in clips) / max(1, len(clips)),
                work_bytes=sum(path.stat().st_size for path in files if path.is_file()),
            )
        )
    return costs


def _on_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS"))


def _cpus() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))
