"""MLflow's own server as a child process on loopback, over the store of a runs directory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from kineograph.errors import Failure

STORE_NAME = "mlflow.db"
ARTIFACTS_NAME = "mlartifacts"


class MlflowServer:
    """A running MLflow server; stop it, or use it as a context manager."""

    def __init__(self, runs_dir: Path, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        runs_dir = runs_dir.resolve()
        self._log = tempfile.TemporaryFile(prefix="kineograph-mlflow-")  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            command(runs_dir, self.port),
            # The server offers to run jobs of its own; a dashboard must not.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server; its workers share its process group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; it may still be on its way up."""
        return self._process.poll() is None

    @property
    def is_up(self) -> bool:
        """Whether the server answers."""
        try:
            # The URL is http on loopback, made above.
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_until_up(self, limit_s: float = 90.0) -> None:
        """Return when the server answers. Raises Failure with its last words when it does not."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self.is_running:
            if self.is_up:
                return
            time.sleep(0.2)
        raise Failure(f"MLflow's server did not come up: {self.last_words()}")

    def last_words(self) -> str:
        """The last line that the server printed."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def stop(self, patience_s: float = 8.0) -> None:
        """End the server and its workers."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        self._log.close()


def command(runs_dir: Path, port: int) -> list[str]:
    """The argument list that serves the store of ``runs_dir`` on loopback and to loopback's names alone."""
    hosts = ",".join(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{runs_dir / STORE_NAME}",
        "--artifacts-destination",
        str(runs_dir / ARTIFACTS_NAME),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--allowed-hosts",
        hosts,
        "--cors-allowed-origins",
        ",".join(f"http://{host}" for host in hosts.split(",")),
    ]


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
