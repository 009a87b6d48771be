"""Try again what was rejected for a reason that may have passed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kineograph.config import parse_config
from kineograph.errors import UserError
from kineograph.progress import say
from kineograph.store.schema import Reason
from pipelines.data import state
from pipelines.data.config import CurateConfig
from pipelines.data.pipeline import curate
from pipelines.data.work import analysis_path

# What a source can be rejected for, its duplicates aside; and the one reason of clips that lies in reading files.
RETRIED = (
    Reason.NOT_MEDIA,
    Reason.CORRUPT,
    Reason.UNREADABLE,
    Reason.TOO_LARGE,
    Reason.TIMEOUT,
    Reason.CRASHED,
    Reason.FETCH_FAILED,
    Reason.ENCODE_FAILED,
)


def retry(run: str | Path, reasons: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Forget that sources of ``run`` failed for one of ``reasons``, and curate its input again; returns its totals.

    Sources that gave frames are not read again. ``overrides`` change the recipe, e.g. the limits of the child, under
    which whatever timed out or crashed is tried again. Raises UserError for a reason that cannot be retried, when the
    run has no analysis, and when another command is at work on it.
    """
    run = Path(run)
    known = [reason.value for reason in RETRIED]
    for reason in reasons:
        if reason not in known:
            raise UserError(
                f"{reason!r} cannot be tried again, a decision can be changed; reasons are: {', '.join(known)}"
            )
    config = state.load_config(run)
    changed = parse_config(config.model_dump(mode="json"), CurateConfig, overrides, name="recipe.yaml")
    state.require_analysed(run)
    with state.locked(run):
        say(f"trying {_forget(run, reasons, config)} again")
    return curate(changed, None, run)


def _forget(run: Path, reasons: Sequence[str], config: CurateConfig) -> str:
    """Delete what says that sources and clips failed for one of ``reasons``; returns how many they were."""
    lines = [line for line in state.load_sources(run) if line["reason"] in reasons]
    for line in lines:
        analysis_path(run, line["source_id"], config).unlink(missing_ok=True)
    clips = sorted((run / "work" / "clips").glob("*/*.failed")) if Reason.ENCODE_FAILED.value in reasons else []
    for path in clips:
        path.unlink()
    counts = {"source": len(lines), "clip": len(clips)}
    shown = [f"{number} {name}{'s' * (number != 1)}" for name, number in counts.items() if number]
    return " and ".join(shown) or "nothing"
