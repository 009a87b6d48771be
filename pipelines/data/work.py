"""What is done to one source: bring it here, measure it, write its clips. Functions that do not know they are in a
pipeline."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kineograph.config import digest
from kineograph.media.faults import MediaFault
from kineograph.media.guard import run_guarded
from kineograph.store.commit import committed, sha256_file, write_bytes, write_text
from kineograph.store.schema import Reason
from pipelines.data import signals
from pipelines.data.analyse import ANALYSIS_VERSION
from pipelines.data.config import CurateConfig
from pipelines.data.duplicates.fingerprint import FINGERPRINT_VERSION
from pipelines.data.encode import ClipJob, encoded_path, failed_path
from pipelines.data.inputs.remote import local_copy, scratch_folder, version_of
from pipelines.data.inputs.sources import Source

Item = dict[str, Any]

# Scalars of an analysis that the table of sources shows.
FACTS = ("media_type", "container", "codec", "width", "height", "frames", "seconds", "interlaced", "warning")


def analysis_path(run: Path, source_id: str, config: CurateConfig) -> Path:
    """Where the analysis of the content ``source_id`` is kept: keyed by all that it depends on."""
    needs = [config.limits.model_dump(), config.samples.model_dump(), config.transitions is not None]
    key = digest([ANALYSIS_VERSION, FINGERPRINT_VERSION, *needs])[:16]
    return run / "work" / "analysis" / source_id[:2] / f"{source_id}-{key}.json.gz"


def samples_path(analysis: Path) -> Path:
    """Where the sampled frames of an analysis are kept: Parquet with columns frame and jpeg."""
    return analysis.with_name(analysis.name.replace(".json.gz", ".samples.parquet"))


def tiny_path(analysis: Path) -> Path:
    """Where the frames for the transition model are kept."""
    return analysis.with_name(analysis.name.replace(".json.gz", ".tiny"))


def analysed_before(source: Item, run: Path, config: CurateConfig) -> Item | None:
    """The line of :func:`analyse_source` for a source that has not changed since it gave one; None when it must be read.

    Reads nothing of the source: its size and times, or one request to its store, say whether it has changed.
    """
    try:
        record = json.loads(_record_path(run, source).read_text())
        line = record["line"]
        limits_matter = line["reason"] in (Reason.TIMEOUT.value, Reason.CRASHED.value)
        if limits_matter and record["guard"] != config.guard.model_dump():
            return None
        if not analysis_path(run, line["source_id"], config).is_file():
            return None
        version = version_of(source["path"], config.inputs)
        return {**line, "source": source} if version and version == record["version"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record_path(run: Path, source: Item) -> Path:
    """Where the line of a source is kept, with what tells that its file has changed."""
    name = digest(["path", source["path"]])
    return run / "work" / "identity" / name[:2] / f"{name}.json"


def analyse_source(source: Item, *, run: str, config: CurateConfig) -> Item:
    """Hash the file of ``source`` and measure it, unless its content was measured before; returns its line of
    work/sources.json.

    A file that gives nothing is no error: the reason is part of what is returned. Raises DiskFullError.
    """
    folder = Path(run)
    version = version_of(source["path"], config.inputs)
    scratch = scratch_folder(folder, config.inputs)
    try:
        with local_copy(source["path"], scratch, config.inputs, config.limits.max_bytes) as path:
            line = _analyse_file(source, path, folder, config)
    except MediaFault as fault:
        return _unread(source, fault)
    except OSError as error:
        return _unread(source, MediaFault(Reason.UNREADABLE, error.strerror or "it cannot be read"))
    with committed(_record_path(folder, source), durable=False) as temp:
        temp.write_text(json.dumps({"version": version, "guard": config.guard.model_dump(), "line": line}))
    return line


def _analyse_file(source: Item, path: Path, run: Path, config: CurateConfig) -> Item:
    _readable(path, config)
    size, source_id = os.stat(path).st_size, sha256_file(path)
    target = analysis_path(run, source_id, config)
    outcome = stored_outcome(target, config)
    if outcome is None:
        outcome = _analyse(str(path), config)
        if outcome["reason"] == Reason.UNREADABLE.value:
            raise MediaFault(Reason.UNREADABLE, outcome["detail"])
        _commit(target, outcome)
    return {
        "source": source,
        "source_id": source_id,
        "bytes": size,
        "reason": outcome["reason"],
        "detail": outcome["detail"],
        "analysis_s": outcome["analysis_s"],
        "facts": {name: outcome["result"][name] for name in FACTS} if outcome["result"] else None,
    }


def _readable(path: Path, config: CurateConfig) -> None:
    """Refuse before hashing what would take forever to read, or never end: a pipe, a device, a giant."""
    status = os.stat(path)
    if not os.path.isfile(path):
        raise MediaFault(Reason.UNREADABLE, "not a regular file")
    if status.st_size > config.limits.max_bytes:
        raise MediaFault(Reason.TOO_LARGE, f"{status.st_size} bytes, the limit is {config.limits.max_bytes}")


def _unread(source: Item, fault: MediaFault) -> Item:
    """A source whose content was not read: its id is a hash of its name, for there is no content to hash."""
    return {
        "source": source,
        "source_id": digest(["uri", source["uri"]]),
        "bytes": 0,
        "reason": fault.reason.value,
        "detail": fault.detail,
        "analysis_s": 0.0,
        "facts": None,
    }


def stored_outcome(path: Path, config: CurateConfig) -> Item | None:
    """The outcome kept at ``path``; None when there is none, or it failed under other limits of the child."""
    try:
        outcome = signals.load(path)
    except (OSError, EOFError, ValueError):
        return None
    limits_matter = outcome["reason"] in (Reason.TIMEOUT.value, Reason.CRASHED.value)
    return None if limits_matter and outcome["guard"] != config.guard.model_dump() else outcome


def _analyse(path: str, config: CurateConfig) -> Item:
    began = time.monotonic()
    outcome: Item = {"reason": "", "detail": "", "result": None, "guard": config.guard.model_dump()}
    try:
        arguments = {"path": path, "limits": config.limits.model_dump(), **config.samples.model_dump()}
        arguments["tiny"] = config.transitions is not None
        outcome["result"] = run_guarded("pipelines.data.analyse:analyse", arguments, config.guard)
    except MediaFault as fault:
        outcome["reason"], outcome["detail"] = fault.reason.value, fault.detail
    outcome["analysis_s"] = round(time.monotonic() - began, 4)
    return outcome


def _commit(target: Path, outcome: Item) -> None:
    """Keep the pictures in files of their own, and the outcome last: where it stands, they do too."""
    if outcome["result"]:
        samples, tiny = outcome["result"].pop("samples"), outcome["result"].pop("tiny")
        columns = {"frame": [s[0] for s in samples], "jpeg": [base64.b64decode(s[1]) for s in samples]}
        schema = pa.schema([("frame", pa.int64()), ("jpeg", pa.binary())])
        with committed(samples_path(target)) as temp:
            pq.write_table(pa.table(columns, schema=schema), temp, compression="none")
        if tiny:
            write_bytes(tiny_path(target), base64.b64decode(tiny))
    signals.save(target, outcome)


def missing_jobs(run: Path, jobs: Sequence[ClipJob], config: CurateConfig) -> list[ClipJob]:
    """Those of ``jobs`` that have neither been written nor failed."""
    keys = {job.clip_id: job.key(config.encode) for job in jobs}
    return [
        job
        for job in jobs
        if not encoded_path(run, keys[job.clip_id]).is_file() and not failed_path(run, keys[job.clip_id]).is_file()
    ]


def encode_source(item: Item, *, run: str, config: CurateConfig) -> Item:
    """Write the clips of one source: ``item`` has its source, source_id and jobs. Commits each clip, or why there is
    none.

    Raises DiskFullError.
    """
    began = time.monotonic()
    jobs = [ClipJob(**{**job, "crop": tuple(job["crop"])}) for job in item["jobs"]]
    analysis = signals.parse(signals.load(analysis_path(Path(run), item["source_id"], config))["result"])
    scratch = scratch_folder(Path(run), config.inputs)
    written = 0
    try:
        with local_copy(Source.from_json(item["source"]).path, scratch, config.inputs, config.limits.max_bytes) as path:
            arguments = {
                "path": str(path),
                "jobs": [{**asdict(job), "frames": job.frames(analysis.times)} for job in jobs],
                "size": [analysis.width, analysis.height],
                "deinterlace": analysis.interlaced > 0,
                "limits": config.limits.model_dump(),
                "encode": config.encode.model_dump(include={"crf", "preset"}),
            }
            videos = run_guarded("pipelines.data.encode:encode_clips", arguments, config.guard)
        why = "the file decoded to fewer frames than when it was analysed"
    except MediaFault as fault:
        videos, why = {}, str(fault)
    for job in jobs:
        key = job.key(config.encode)
        if job.clip_id in videos:
            write_bytes(encoded_path(Path(run), key), base64.b64decode(videos[job.clip_id]))
            written += 1
        else:
            write_text(failed_path(Path(run), key), why)
    spent = encode_seconds(Path(run), item["source_id"]) + time.monotonic() - began
    with committed(_seconds_path(Path(run), item["source_id"]), durable=False) as temp:
        temp.write_text(f"{spent:.4f}")
    return {"written": written, "failed": len(jobs) - written}


def encode_seconds(run: Path, source_id: str) -> float:
    """Wall seconds spent on writing the clips of a source so far."""
    try:
        return float(_seconds_path(run, source_id).read_text())
    except (OSError, ValueError):
        return 0.0


def _seconds_path(run: Path, source_id: str) -> Path:
    return run / "work" / "seconds" / source_id[:2] / source_id
