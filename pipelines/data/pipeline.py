"""The whole curation run on one page: list, analyse, decide, encode, write, account.

The unit of work is the source. What a stage makes of it is committed whole under a key of its content and the
part of the recipe that the stage depends on, so a killed run goes on and a changed threshold redoes only what
is downstream. Nothing larger than a row of numbers passes through Ray's object store: frames live in one
child process, clips and shards go to files.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kineograph.config import parse_config
from kineograph.errors import UserError
from kineograph.progress import say
from kineograph.store.commit import write_text
from kineograph.store.manifest import MANIFEST_NAME, SUCCESS_NAME, Manifest, Shard
from kineograph.store.schema import Reason
from pipelines.data import gradual, ledger, measured, report, scoring, state
from pipelines.data.config import CurateConfig
from pipelines.data.decide import Failed
from pipelines.data.encode import ClipJob, crop_for, encoded_path, failed_path, plan_clip
from pipelines.data.inputs.sources import Source, list_sources, resolved
from pipelines.data.latents import Encoded, WrittenClip, check_latents, encode_latents
from pipelines.data.selection import passing, select
from pipelines.data.text import Encoder, embed, find_encoder, locate_encoder
from pipelines.data.times import add_times, stage_times
from pipelines.data.work import (
    analyse_source,
    analysed_before,
    analysis_path,
    encode_seconds,
    encode_source,
    missing_jobs,
)
from pipelines.data.write import ShardPlan, already_written, plan_shards, remove_stale, shard_bytes, write_planned

Row = dict[str, Any]

# Shards of no more bytes than this are written by the driver's own threads: Ray takes seconds to start.
WRITTEN_HERE_BYTES = 2 * 2**30
WRITING_THREADS = 4
# Sources asked at a time whether they have changed: a request each where they are remote.
ASKED_AT_ONCE = 32


def curate(config: CurateConfig, input: str | Path | None, out: str | Path) -> Row:
    """Curate the sources of ``input`` (else the recipe's) into the run directory ``out``; returns its totals.

    The same inputs and recipe give the same manifest digest. Raises UserError when there is nothing to curate
    or nothing was kept, Failure (DiskFullError) when the work could not be done; what is done is kept either
    way.
    """
    began = time.monotonic()
    root = input or config.input
    if root is None:
        raise UserError("no input: give --input DIR, or 'input:' in the recipe")
    run = Path(out)
    state.check_run_directory(run)
    listing = list_sources(root, config.inputs)
    if listing.note:
        say(listing.note)
    return curate_sources(
        config.model_copy(update={"input": resolved(root, config.inputs)}), listing.sources, run, began
    )


def curate_sources(config: CurateConfig, sources: Sequence[Source], run: Path, began: float) -> Row:
    """As :func:`curate`, for ``sources`` that were listed."""
    config = _checked(config)
    with state.locked(run):
        state.open_run(run, config)
        state.save_sources(run, _analyse(run, config, [source.to_json() for source in sources]))
        return _finish(run, config, began)


def decide(run: str | Path, overrides: Sequence[str] = ()) -> Row:
    """Decide again from the stored signals of ``run`` with ``overrides`` of its recipe; decodes only what is
    new."""
    began = time.monotonic()
    run = Path(run)
    before = state.load_config(run)
    config = parse_config(before.model_dump(mode="json"), CurateConfig, overrides, name="recipe.yaml")
    for name in ("limits", "input", "inputs", "samples"):
        if getattr(config, name) != getattr(before, name):
            raise UserError(f"{name} is not decided on stored signals: use 'kineo data run' for it")
    if config.transitions is not None and before.transitions is None:
        raise UserError("transitions need frames that were not stored: use 'kineo data run' for them")
    if before.transitions is not None and config.transitions is None:
        raise UserError("transitions cannot be taken away from stored signals: use 'kineo data run' for that")
    config = _checked(config)
    state.require_analysed(run)
    with state.locked(run):
        state.open_run(run, config)
        return _finish(run, config, began)


def _checked(config: CurateConfig) -> CurateConfig:
    """``config`` with what it names located. Raises UserError, before hours of work, for what is not there."""
    scoring.check_models(config)
    check_latents(config.encode.latents, config.buckets.parsed)
    return config.model_copy(update={"text_encoder": locate_encoder(config.text_encoder)})


def _finish(run: Path, config: CurateConfig, began: float) -> Row:
    """From stored signals to a finished run."""
    lines = state.load_sources(run)
    same_bytes = ledger.exact_duplicates(lines)
    unique = [line for line in lines if line["facts"] and line["source"]["uri"] not in same_bytes]
    keys = _measure(run, config, unique)
    selecting = time.monotonic()
    rows, copies = select(run, config, unique, keys)
    for row in passing(rows):
        row["crop"] = crop_for(row["content"], row["bucket"])
    add_times(run, "selected", len(rows), time.monotonic() - selecting, time.monotonic() - selecting)

    jobs = {row["clip_id"]: plan_clip(row, config.buckets.fps) for row in passing(rows)}
    _encode(run, config, unique, rows, jobs)
    for row in passing(rows):
        if failed_path(run, jobs[row["clip_id"]].key(config.encode)).is_file():
            row["failed"].append(Failed(Reason.ENCODE_FAILED, 0.0, 1.0))
            row["bucket"] = ""
    uris = {line["source_id"]: line["source"]["uri"] for line in unique}
    sources = [
        ledger.source_row(
            {**line, "encode_s": encode_seconds(run, line["source_id"])},
            same_bytes.get(line["source"]["uri"]),
            copies.get(line["source_id"]),
            uris,
        )
        for line in lines
    ]
    clips = [ledger.clip_row(row, config) for row in rows]
    encoded = {clip_id: job.key(config.encode) for clip_id, job in jobs.items()}
    latents = _encode_latents(run, config, clips, encoded)
    encoder = find_encoder(config.text_encoder)
    shards = _write(run, config, clips, encoder, encoded, latents)
    return _close(run, config, sources, clips, shards, encoder, latents, keys, began)


def _analyse(run: Path, config: CurateConfig, sources: list[Row]) -> list[Row]:
    """Hash and measure every source once; its analysis is committed under work/analysis."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        before = list(pool.map(lambda source: analysed_before(source, run, config), sources))
    known = [line for line in before if line]
    new = [source for source, line in zip(sources, before, strict=True) if line is None]
    if known:
        say(f"{len(known)} of {len(sources)} sources have not changed since they were analysed")
    if not new:
        return known
    from pipelines.data.stages import Resources, run_stage

    # One CPU: the child decodes with one thread, for a source per core scales better than threads within
    # one. No memory is asked of Ray: the child has a limit of its own.
    function = partial(analyse_source, run=str(run.resolve()), config=config)
    return known + run_stage(
        run, "analysed", "sources", new, function, Resources(cpus=1, in_threads=True), config.workers
    )


def _measure(run: Path, config: CurateConfig, unique: list[Row]) -> list[str]:
    """Cut the analysed sources into clips and measure them; returns the keys of the chunks, in the order of sources."""
    chunks = measured.chunks(unique, config)
    missing = [chunk for chunk in chunks if not measured.chunk_path(run, chunk["key"]).is_file()]
    if not missing:
        return [chunk["key"] for chunk in chunks]
    from pipelines.data.stages import Resources, run_stage

    folder = str(run.resolve())
    if config.transitions:
        settings = config.transitions
        items = [
            {"source_id": line["source_id"], "fps": line["facts"]["frames"] / line["facts"]["seconds"]}
            for line in unique
            if line["facts"]["media_type"] == "video"
            and not gradual.scores_path(analysis_path(run, line["source_id"], config), settings).is_file()
        ]
        # One CPU: the network runs on one thread, so that another worker has the other core.
        gpus = 1.0 if settings.device.startswith("cuda") else 0.0
        function = partial(gradual.score_transitions, run=folder, config=config)
        resources = Resources(cpus=1, gpus=gpus)
        run_stage(run, "found transitions", "sources", items, function, resources, config.workers)
    # One CPU: a chunk is read, measured and written by one thread.
    function = partial(measured.measure_chunk, run=folder, config=config)
    run_stage(run, "measured", "chunks", missing, function, Resources(cpus=1, in_threads=True), config.workers)
    return [chunk["key"] for chunk in chunks]


def _encode(run: Path, config: CurateConfig, unique: list[Row], rows: list[Row], jobs: dict[str, ClipJob]) -> None:
    """Decode the sources whose clips are not all there, once each, and commit their clips under
    work/clips."""
    of_source: dict[str, list[ClipJob]] = defaultdict(list)
    for row in passing(rows):
        of_source[row["source_id"]].append(jobs[row["clip_id"]])
    items = [
        {"source": line["source"], "source_id": line["source_id"], "jobs": [asdict(job) for job in missing]}
        for line in unique
        if (missing := missing_jobs(run, of_source[line["source_id"]], config))
    ]
    if not items:
        return
    from pipelines.data.stages import Resources, run_stage

    # One CPU: decoder and x264 run on one thread and take turns.
    function = partial(encode_source, run=str(run.resolve()), config=config)
    run_stage(run, "encoded", "sources", items, function, Resources(cpus=1, in_threads=True), config.workers)


def _encode_latents(run: Path, config: CurateConfig, clips: list[Row], keys: dict[str, str]) -> Encoded | None:
    """Latents of the kept clips, from what was written of them."""
    kept = [(clip, keys[clip["clip_id"]]) for clip in clips if clip["decision"] == "keep"]
    written = [
        WrittenClip(clip["clip_id"], key, encoded_path(Path(), key).as_posix(), clip["bucket"]) for clip, key in kept
    ]
    return encode_latents(run, config.encode.latents, written, config.workers)


def _write(
    run: Path,
    config: CurateConfig,
    clips: list[Row],
    encoder: Encoder,
    keys: dict[str, str],
    latents: Encoded | None,
) -> list[Shard]:
    """Write the shards that do not stand yet; returns all, in the order of the plan."""
    plans = plan_shards(clips, keys if config.encode.video else {}, config, encoder, latents.keys if latents else {})
    captions = [row["caption"] for plan in plans for row in plan.rows]
    embed(run, captions, config.text_encoder, encoder, config.workers)
    missing = [plan for plan in plans if already_written(run, plan) is None]
    began = time.monotonic()
    if sum(shard_bytes(run, plan) for plan in missing) <= WRITTEN_HERE_BYTES:
        with ThreadPoolExecutor(WRITING_THREADS) as pool:
            list(pool.map(lambda plan: write_planned(asdict(plan), run=str(run)), missing))
        add_times(run, "wrote", len(missing), time.monotonic() - began, time.monotonic() - began)
    else:
        _write_with_ray(run, config, missing)
    standing = [shard for plan in plans if (shard := already_written(run, plan))]
    assert len(standing) == len(plans), "a shard that was just written is not as planned"
    remove_stale(run, plans)
    return standing


def _write_with_ray(run: Path, config: CurateConfig, missing: list[ShardPlan]) -> None:
    from pipelines.data.stages import Resources, run_stage

    # A quarter of a CPU: writing waits for the disk.
    function = partial(write_planned, run=str(run.resolve()))
    items = [asdict(plan) for plan in missing]
    run_stage(run, "wrote", "shards", items, function, Resources(cpus=0.25), config.workers)


def _close(
    run: Path,
    config: CurateConfig,
    sources: list[Row],
    clips: list[Row],
    shards: list[Shard],
    encoder: Encoder,
    latents: Encoded | None,
    keys: list[str],
    began: float,
) -> Row:
    """Ledger, manifest, report, and _SUCCESS last. Raises UserError when nothing was kept."""
    totals = ledger.totals(sources, clips)
    thumbnails: dict[str, bytes] = {}
    for key in keys:
        thumbnails.update(measured.read_thumbnails(run, key))
    ledger.write_ledger(run, sources, clips, thumbnails)
    summary = {"run": str(run), "digest": "", "totals": totals, "wall_s": round(time.monotonic() - began, 2)}

    def write_report() -> None:
        report.write_report(
            run,
            summary,
            sources,
            clips,
            filters=config.filters.model_dump(mode="json"),
            stages=stage_times(run),
            thumbnails=lambda some: [thumbnails.get(clip["clip_id"], b"") for clip in some],
        )

    if not shards:
        (run / MANIFEST_NAME).unlink(missing_ok=True)
        write_report()
        raise UserError(f"nothing was kept: {report.losses(totals)}; see {run / report.REPORT_NAME}")
    manifest = Manifest(
        recipe_digest=config.recipe_digest,
        text_encoder=encoder.info,
        video=config.encode.video,
        autoencoder=latents.autoencoder if latents else None,
        shards=tuple(shards),
        totals=totals,
    )
    manifest.save(run)
    summary["digest"] = manifest.digest
    write_report()
    write_text(run / SUCCESS_NAME, manifest.digest + "\n")
    return summary
