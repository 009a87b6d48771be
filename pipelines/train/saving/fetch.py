"""Going on where a run's own checkpoints are gone: from the copies that were uploaded."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from kineograph.errors import Failure
from kineograph.outbox import reason
from kineograph.progress import say
from kineograph.store.checkpoints import (
    CHECKPOINTS,
    COMPLETE,
    DIGESTS,
    INDEX,
    checkpoint_folder,
    is_complete,
    latest_checkpoint,
    link_folder,
    list_checkpoints,
    parse_digests,
    remove_checkpoint,
)
from kineograph.store.commit import sha256_file, write_bytes
from kineograph.store.places import NO_OPTIONS, Options
from pipelines.train.saving.config import CheckpointConfig
from pipelines.train.saving.depot import ORIGIN, Depot, step_name
from pipelines.train.saving.upload import RUN_FILES, Mirror, check_origin


def prepare_upload(run: Path, config: CheckpointConfig) -> Path | None:
    """Before a start: :func:`fetch_latest`, and put the run's name on the place, so that one that cannot be written is
    found out now. None where there is nothing to upload to. Raises as :func:`fetch_latest` does."""
    if config.upload is None:
        return None
    fetched = fetch_latest(config.upload, run, config.storage_options)
    try:
        Mirror(run, config).open()
    except OSError as error:
        raise Failure(f"{config.upload} cannot be read: {reason(error)}") from error
    return fetched


def fetch_latest(url: str, run: Path, options: Options = NO_OPTIONS) -> Path | None:
    """Bring the newest whole checkpoint of ``url`` (checkpoint.upload) into a run that has none, with what else is needed
    to go on. None where the run has one, which is then the one to go on from, or ``url`` has none.

    One whose bytes are not those that were saved is named, and the one before it is taken. Raises NotReached or Failure
    when the place cannot be read, UserError when it is another run's, DiskFullError.
    """
    depot = Depot(url, options)
    try:
        if any(map(is_complete, list_checkpoints(run))) and latest_checkpoint(run) is not None:
            check_origin(depot, run)
            return None
        for step in reversed(depot.steps()):
            fault = _fetch(depot, step, run)
            if not fault:
                return checkpoint_folder(run, step)
            say(f"skipping checkpoint {depot / step_name(step)}: {fault}")
    except OSError as error:
        raise Failure(f"{url} cannot be read: {reason(error)}") from error
    return None


def _fetch(depot: Depot, step: int, run: Path) -> str:
    """Bring a checkpoint into the run, marker last. Returns what is wrong with it, and has brought nothing then."""
    folder, top = checkpoint_folder(run, step), step_name(step)
    say(f"fetching checkpoint {depot / top}")
    _clear(folder)
    try:
        raw = depot.read(f"{top}/{DIGESTS}")
        for name, expected in parse_digests(raw).items():
            try:
                depot.fetch(f"{top}/{name}", folder / name)
            except FileNotFoundError as error:
                raise ValueError(f"{name} is missing") from error
            if sha256_file(folder / name) != expected:
                raise ValueError(f"the bytes of {name} are not those that were saved")
        write_bytes(folder / DIGESTS, raw)
        _fetch_run_files(depot, run)
        for part in sorted(path for path in folder.iterdir() if path.is_dir()):
            if not (run / part.name).exists():
                link_folder(part, run / part.name)
        write_bytes(folder / COMPLETE, b"")
    except FileNotFoundError:
        _clear(folder)
        return f"{DIGESTS} is missing"
    except ValueError as error:
        _clear(folder)
        return str(error)
    except BaseException:
        _clear(folder)
        raise
    return ""


def _fetch_run_files(depot: Depot, run: Path) -> None:
    for name in depot.names():
        path = PurePosixPath(name)
        if len(path.parts) == 1 and any(path.match(pattern) for pattern in RUN_FILES):
            write_bytes(run / name, depot.read(name))
    for name in (INDEX, ORIGIN):
        if depot.has(f"{CHECKPOINTS}/{name}"):
            write_bytes(run / CHECKPOINTS / name, depot.read(f"{CHECKPOINTS}/{name}"))


def _clear(folder: Path) -> None:
    if folder.exists():
        remove_checkpoint(folder)
