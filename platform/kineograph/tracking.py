"""MLflow, for training that must not notice when it is gone.

Calls leave an entry in an outbox and return. What MLflow misses is kept in RUN/tracking-spool.jsonl and is
sent when it answers again, at the latest by the next :meth:`Tracker.start` of the same run.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from kineograph.errors import Failure, UserError
from kineograph.mlflow_store import MOST_METRICS, SQLITE, MlflowStore, as_image, is_refusal
from kineograph.outbox import Entry, Outbox, reason
from kineograph.tracked_models import ModelLog
from kineograph.tracked_models import metric_name as _name

if TYPE_CHECKING:
    from PIL.Image import Image

SPOOL_NAME = "tracking-spool.jsonl"
STORE_NAME = "mlflow.db"

_LONGEST_VALUE, _LONGEST_TAG = 500, 5000  # characters; what older servers take


def default_uri(run_dir: Path) -> str:
    """MLFLOW_TRACKING_URI if set, else sqlite in mlflow.db beside the run directory.

    Raises UserError when that folder's path cannot stand in a URI of sqlite.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    folder = Path(run_dir).resolve().parent
    if "?" in str(folder):  # SQLAlchemy takes what follows for options and knows no escape
        raise UserError(f"MLflow's store cannot lie in {folder}: use a path without a question mark")
    return f"{SQLITE}{folder / STORE_NAME}"


class Tracker(ModelLog):
    """One MLflow run. Only start, flush and finish wait for MLflow, and not for long; none raises for it.

    As a context manager it finishes the run, as FAILED when the block raised.
    """

    def __init__(self, uri: str, run: _Run, outbox: Outbox) -> None:
        """Use :meth:`start`."""
        super().__init__()
        self.uri = uri
        self._run, self._outbox = run, outbox

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        *,
        run_dir: Path,
        wait_s: float | None = None,
    ) -> Tracker:
        """Start a run, or resume ``run_id``; a new one is started where ``run_id`` is not known.

        Returns when MLflow has answered or failed once, at the latest after ``wait_s`` seconds: by default 10
        for a server, and 60 for a database, whose tables may have to be made. Until MLflow answers,
        :attr:`run_id` is None.
        """
        run = _Run(uri, experiment, run_name, run_id)
        # A run that goes on has not ended, whatever was to be sent of its end.
        outbox = Outbox(run, Path(run_dir) / SPOOL_NAME, skip=lambda entry: entry["op"] == "finish")
        outbox.wait_for_first_try((10 if uri.startswith("http") else 60) if wait_s is None else wait_s)
        return cls(uri, run, outbox)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish("FAILED" if kind else "FINISHED")

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until MLflow has answered."""
        return self._run.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log a recipe; nested mappings become dotted keys, long values are cut.

        MLflow's parameters cannot change: what differs on a resumed run becomes the tag ``resumed.KEY``.
        """
        self._put(op="params", params={_name(k): _value(v) for k, v in _flat(params)})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at an optimizer step, with the time of this call."""
        values = {_name(key): float(value) for key, value in metrics.items()}
        self._put(op="metrics", metrics=values, step=int(step), time=self._remember(values, int(step), _now()))

    def log_dataset(
        self,
        name: str,
        digest: str,
        source: str | Path,
        context: str = "training",
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the dataset that is read. MLflow's digest is its first 32 characters; the tags hold it all."""
        texts = {k: str(v) for k, v in (tags or {}).items()}
        self._put(op="dataset", name=name, digest=digest, source=str(source), context=context, tags=texts)

    def log_file(self, path: Path, artifact_path: str = "") -> None:
        """Log a file into the folder ``artifact_path`` of the run. It is read later: it must stay there."""
        self._put(op="file", path=str(Path(path).resolve()), artifact_path=artifact_path)

    log_video = log_file

    def log_image(self, key: str, image: Image | np.ndarray, step: int) -> None:
        """Log a PIL image or uint8 (H, W, 3) array; MLflow shows a key's images with a slider over steps."""
        copy = as_image(np.array(image) if isinstance(image, np.ndarray) else image).convert("RGB")
        self._put(op="image", key=re.sub(r"[^\w\-./ ]", "_", key), image=copy, step=int(step), time=_now())

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        self._put(op="tags", tags={_name(k): str(v)[:_LONGEST_TAG] for k, v in tags.items()})

    def flush(self, timeout_s: float = 20.0) -> bool:
        """Wait until all that was logged is sent. False when it is not, after ``timeout_s`` seconds."""
        return self._outbox.flush(timeout_s)

    def finish(self, status: str = "FINISHED", timeout_s: float = 20.0) -> None:
        """End the run as FINISHED, FAILED or KILLED. What is not sent in ``timeout_s`` stays in the spool."""
        self._outbox.close({"op": "finish", "status": status, "time": _now()}, timeout_s)

    def _put(self, **entry: Any) -> None:
        self._outbox.put(entry)


def log_scores(
    uri: str,
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
    artifacts: Iterable[tuple[Path, str]] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    """Attach scores to a run at a checkpoint's step, with files (path, folder in the run's artifacts).

    Raises Failure, one line, when MLflow cannot be reached or does not know the run.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise Failure(f"the scores are not in MLflow: there is no store at {uri.removeprefix(SQLITE)}")
    values = {_name(key): float(value) for key, value in metrics.items()}
    entries: list[Entry] = [{"op": "metrics", "metrics": values, "step": int(step), "time": _now()}]
    if tags:
        entries.append({"op": "tags", "tags": {_name(k): str(v)[:_LONGEST_TAG] for k, v in tags.items()}})
    entries += [{"op": "file", "path": str(p), "artifact_path": folder} for p, folder in artifacts]
    try:
        store = MlflowStore(uri)
        for entry in entries:
            store.apply(run_id, [entry])
    except Exception as error:
        raise Failure(f"the scores are not in {_shown(uri)}: {reason(error)}") from error


class _Run:
    """One MLflow run as the receiver of an outbox."""

    def __init__(self, uri: str, experiment: str, run_name: str, run_id: str | None) -> None:
        self.name = _shown(uri)
        self.run_id: str | None = None
        self._uri, self._wanted = uri, (experiment, run_name, run_id)
        self._store: MlflowStore | None = None

    def reach(self) -> None:
        """Open the run, or see that its store answers."""
        if self._store is None:
            self._store = MlflowStore(self._uri)
        if self.run_id is None:
            self.run_id = self._store.open_run(*self._wanted)
        else:
            self._store.check(self.run_id)

    def together(self, entries: Sequence[Entry]) -> int:
        """Metrics of one run, up to a request's most; of everything else one."""
        first, count = entries[0], 0
        if first["op"] != "metrics":
            return 1
        for place, entry in enumerate(entries):
            count += len(entry.get("metrics", ()))
            other = entry["op"] != "metrics" or entry.get("run_id") != first.get("run_id")
            if place and (other or count > MOST_METRICS):
                return place
        return len(entries)

    def send(self, entries: Sequence[Entry]) -> None:
        """Send entries to this run, or to that of an earlier process which left them."""
        assert self._store is not None
        assert self.run_id is not None
        run_id = entries[0].get("run_id") or self.run_id
        if run_id == self._wanted[2]:
            run_id = self.run_id  # which is another one where the wanted run is gone
        self._store.apply(run_id, entries)

    def is_refusal(self, error: Exception) -> bool:
        return is_refusal(error)

    def to_json(self, entry: Entry) -> Entry:
        """The entry with the run that it belongs to, an image as PNG in base64."""
        kept = {**entry, "run_id": entry.get("run_id") or self.run_id}
        if "image" in kept:
            buffer = io.BytesIO()
            as_image(kept.pop("image")).save(buffer, format="PNG")
            kept["png"] = base64.b64encode(buffer.getvalue()).decode()
        return kept


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _shown(uri: str) -> str:
    """What messages call the store: its URI without the password that it may hold."""
    host = urlsplit(uri).netloc
    return f"MLflow at {uri.replace(host, host.rpartition('@')[2], 1) if '@' in host else uri}"


def _now() -> int:
    return int(time.time() * 1000)
