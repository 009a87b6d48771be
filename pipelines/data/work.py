"""What is done to one source: measure it, write its clips. Functions that do not know they are in a
pipeline."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kineograph.config import digest
from kineograph.media.faults import MediaFault
from kineograph.media.guard import run_guarded
from kineograph.store.commit import sha256_file, write_bytes, write_text
from kineograph.store.schema import Reason
from pipelines.data import signals
from pipelines.data.analyse import ANALYSIS_VERSION
from pipelines.data.config import CurateConfig
from pipelines.data.encode import ClipJob, encoded_path, failed_path

Item = dict[str, Any]


def analysis_path(run: Path, source_id: str, config: CurateConfig) -> Path:
    """Where the analysis of the content ``source_id`` is kept: keyed by all that it depends on."""
    key = digest([ANALYSIS_VERSION, config.limits.model_dump()])[:16]
    return run / "work" / "analysis" / source_id[:2] / f"{source_id}-{key}.json.gz"


def analyse_source(source: Item, *, run: str, config: CurateConfig) -> Item:
    """Hash the file of ``source`` and measure it, unless that was done before; returns its line of
    work/sources.json.

    A file that gives nothing is no error: the reason is part of what is returned. Raises DiskFullError.
    """
    path = source["path"]
    try:
        _readable(path, config)
        size, source_id = os.stat(path).st_size, sha256_file(Path(path))
    except MediaFault as fault:
        return _unread(source, fault)
    except OSError as error:
        return _unread(source, MediaFault(Reason.UNREADABLE, error.strerror or "it cannot be read"))
    target = analysis_path(Path(run), source_id, config)
    outcome = _stored(target, config)
    if outcome is None:
        outcome = _analyse(path, config)
        if outcome["reason"] == Reason.UNREADABLE.value:
            return _unread(source, MediaFault(Reason.UNREADABLE, outcome["detail"]))
        signals.save(target, outcome)
    return {"source": source, "source_id": source_id, "bytes": size, "reason": outcome["reason"]}


def _readable(path: str, config: CurateConfig) -> None:
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
    }


def _stored(path: Path, config: CurateConfig) -> Item | None:
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
        arguments = {"path": path, "limits": config.limits.model_dump()}
        outcome["result"] = run_guarded("pipelines.data.analyse:analyse", arguments, config.guard)
    except MediaFault as fault:
        outcome["reason"], outcome["detail"] = fault.reason.value, fault.detail
    outcome["analysis_s"] = round(time.monotonic() - began, 4)
    return outcome


def missing_jobs(run: Path, jobs: Sequence[ClipJob], config: CurateConfig) -> list[ClipJob]:
    """Those of ``jobs`` that have neither been written nor failed."""
    keys = {job.clip_id: job.key(config.encode) for job in jobs}
    return [
        job
        for job in jobs
        if not encoded_path(run, keys[job.clip_id]).is_file() and not failed_path(run, keys[job.clip_id]).is_file()
    ]


def encode_source(item: Item, *, run: str, config: CurateConfig) -> Item:
    """Write the clips of one source: ``item`` has its path and jobs. Commits each clip, or why there is none.

    Raises DiskFullError.
    """
    jobs = [ClipJob(**{**job, "frames": tuple(job["frames"])}) for job in item["jobs"]]
    arguments = {
        "path": item["path"],
        "jobs": [asdict(job) for job in jobs],
        "limits": config.limits.model_dump(),
        "encode": config.encode.model_dump(),
    }
    try:
        videos = run_guarded("pipelines.data.encode:encode_clips", arguments, config.guard)
        why = "the file decoded to fewer frames than when it was analysed"
    except MediaFault as fault:
        videos, why = {}, str(fault)
    for job in jobs:
        key = job.key(config.encode)
        if job.clip_id in videos:
            write_bytes(encoded_path(Path(run), key), base64.b64decode(videos[job.clip_id]))
        else:
            write_text(failed_path(Path(run), key), why)
    return {"written": len(videos), "failed": len(jobs) - len(videos)}
