"""The whole curation run on one page: list, analyse, decide, encode, write, account.

The unit of work is the source. What a stage makes of it is committed whole under a key of its content and the
part of the recipe that the stage depends on, so a killed run goes on and a changed threshold redoes only what
is downstream. Nothing larger than a row of numbers passes through Ray's object store: frames live in one
child process, clips and shards go to files.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kineograph.config import parse_config
from kineograph.errors import UserError
from kineograph.progress import say
from kineograph.store.commit import write_text
from kineograph.store.manifest import MANIFEST_NAME, SUCCESS_NAME, Manifest
from kineograph.store.schema import Reason
from pipelines.data import ledger, report, state
from pipelines.data.config import CurateConfig
from pipelines.data.decide import Rejection
from pipelines.data.encode import ClipJob, failed_path, plan_clip
from pipelines.data.sources import list_sources
from pipelines.data.work import analyse_source, encode_source, missing_jobs
from pipelines.data.write import (
    ShardPlan,
    WrittenShard,
    already_written,
    plan_shards,
    remove_stale,
    write_planned,
)

Row = dict[str, Any]


def curate(config: CurateConfig, input: str | Path | None, out: str | Path) -> Row:
    """Curate the sources under ``input`` (else the recipe's) into the run directory ``out``; returns its
    totals.

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
    listing = list_sources(root)
    config = config.model_copy(update={"input": str(Path(root).resolve())})
    state.open_run(run, config)
    if listing.note:
        say(listing.note)
    state.save_sources(run, _analyse(run, config, [source.to_json() for source in listing.sources]))
    return _finish(run, config, began)


def decide(run: str | Path, overrides: Sequence[str] = ()) -> Row:
    """Decide again from the stored signals of ``run`` with ``overrides`` of its recipe; decodes only what is
    new."""
    began = time.monotonic()
    run = Path(run)
    before = state.load_config(run)
    config = parse_config(before.model_dump(mode="json"), CurateConfig, overrides, name="recipe.yaml")
    if config.limits != before.limits or config.input != before.input:
        raise UserError("input and limits are not decided on stored signals: use 'kineo data run' for them")
    state.require_analysed(run)
    state.open_run(run, config)
    return _finish(run, config, began)


def _finish(run: Path, config: CurateConfig, began: float) -> Row:
    """From stored signals to a finished run."""
    outcomes = state.load_outcomes(run, config)
    duplicates = ledger.find_duplicates(outcomes)
    sources = [ledger.source_row(outcome, duplicates.get(outcome.source.uri)) for outcome in outcomes]
    unique = [o for o in outcomes if o.analysis is not None and o.source.uri not in duplicates]
    clips = [row for outcome in unique for row in ledger.clip_rows(outcome, config)]

    kept: dict[str, list[Row]] = defaultdict(list)
    for clip in clips:
        if clip["decision"] == "keep":
            kept[clip["source_id"]].append(clip)
    jobs: dict[str, list[ClipJob]] = {}
    for outcome in unique:
        if outcome.analysis is not None and outcome.source_id in kept:
            rows = kept[outcome.source_id]
            jobs[outcome.source.path] = [plan_clip(row, outcome.analysis, config.buckets.fps) for row in rows]
    del outcomes, unique
    _encode(run, config, jobs)
    keys = {job.clip_id: job.key(config.encode) for of_source in jobs.values() for job in of_source}
    clips = [_reject_unwritten(run, clip, keys.get(clip["clip_id"])) for clip in clips]

    plans = plan_shards(clips, keys, config)
    written = _write(run, config, plans)
    remove_stale(run, plans)
    return _close(run, config, sources, clips, written, began)


def _analyse(run: Path, config: CurateConfig, sources: list[Row]) -> list[Row]:
    """Hash and measure every source once; its analysis is committed under work/analysis."""
    from pipelines.data.stages import OnItem, at_a_time, run_stage

    function = OnItem(partial(analyse_source, run=str(run.resolve()), config=config))
    results = run_stage(
        "analysed",
        "sources",
        sources,
        # One CPU: the child decodes with one thread, for a source per core scales better than threads within
        # one. No memory is asked of Ray: the child has a limit of its own.
        lambda items: items.map(function, num_cpus=1, compute=at_a_time(config.workers, len(sources))),
        config.workers,
    )
    return list(results)


def _encode(run: Path, config: CurateConfig, jobs: dict[str, list[ClipJob]]) -> None:
    """Decode the sources whose clips are not all there, once each, and commit their clips under
    work/clips."""
    missing = {path: missing_jobs(run, of_source, config) for path, of_source in jobs.items()}
    sources = [{"path": path, "jobs": [asdict(job) for job in some]} for path, some in missing.items() if some]
    if not sources:
        return
    from pipelines.data.stages import OnItem, at_a_time, run_stage

    function = OnItem(partial(encode_source, run=str(run.resolve()), config=config))
    results = run_stage(
        "encoded",
        "sources",
        sources,
        # One CPU: decoder and x264 run on one thread and take turns.
        lambda items: items.map(function, num_cpus=1, compute=at_a_time(config.workers, len(sources))),
        config.workers,
    )
    deque(results, maxlen=0)


def _write(run: Path, config: CurateConfig, plans: list[ShardPlan]) -> list[WrittenShard]:
    """Write the shards that do not stand yet; returns all, in the order of the plan."""
    missing = [asdict(plan) for plan in plans if already_written(run, plan) is None]
    if missing:
        from pipelines.data.stages import OnItem, at_a_time, run_stage

        function = OnItem(partial(write_planned, run=str(run.resolve())))
        # A process loads the encoder once, in seconds, and then writes a shard in a fraction of one: another
        # process pays from some ten shards on.
        processes = min(config.workers or len(missing), 1 + len(missing) // 10)
        results = run_stage(
            "wrote",
            "shards",
            missing,
            # One CPU: the encoder runs on one thread, so that embeddings are the same to the bit.
            lambda items: items.map(function, num_cpus=1, compute=at_a_time(processes, len(missing))),
            config.workers,
        )
        deque(results, maxlen=0)
    standing = [already_written(run, plan) for plan in plans]
    assert all(standing), "a shard that was just written is not as planned"
    return [shard for shard in standing if shard]


def _reject_unwritten(run: Path, clip: Row, key: str | None) -> Row:
    """``clip`` as rejected when it was to be written and could not be decoded again."""
    if key is None or not failed_path(run, key).is_file():
        return clip
    return ledger.reject(clip, Rejection(Reason.ENCODE_FAILED, 0.0, 1.0))


def _close(
    run: Path,
    config: CurateConfig,
    sources: list[Row],
    clips: list[Row],
    written: list[WrittenShard],
    began: float,
) -> Row:
    """Ledger, manifest, report, and _SUCCESS last. Raises UserError when nothing was kept."""
    totals = ledger.totals(sources, clips)
    ledger.write_ledger(run, sources, clips)
    summary = {"run": str(run), "digest": "", "totals": totals, "wall_s": round(time.monotonic() - began, 2)}
    if not written:
        (run / MANIFEST_NAME).unlink(missing_ok=True)
        report.write_report(run, summary, sources, clips)
        raise UserError(f"nothing was kept: {report.losses(totals)}; see {run / report.REPORT_NAME}")
    manifest = Manifest(
        recipe_digest=config.recipe_digest,
        text_encoder=written[0].text_encoder,
        shards=tuple(shard.shard for shard in written),
        totals=totals,
    )
    manifest.save(run)
    summary["digest"] = manifest.digest
    report.write_report(run, summary, sources, clips)
    write_text(run / SUCCESS_NAME, manifest.digest + "\n")
    return summary
