"""A real Ray cluster of its own, started once and stopped by its own process; plans of stand-in jobs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kineograph.jobs.cluster import ClusterConfig
from kineograph.jobs.plan import JobPlan, plan_job


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ClusterConfig]:
    """`ray start --head` on free ports, as a user starts it."""
    # Ray's sockets live under it, and their paths must stay short: pytest's own folder is too deep.
    temp = tempfile.mkdtemp(prefix="kineo-ray-", dir="/tmp")
    port = free_port()
    ports = {
        "dashboard-port": port,
        "port": 0,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "dashboard-agent-grpc-port": free_port(),
        "metrics-export-port": free_port(),
    }
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    command += ["--temp-dir", temp, "--num-cpus=2", "--object-store-memory=100000000"]
    command += ["--dashboard-host=127.0.0.1", *(f"--{name}={value}" for name, value in ports.items())]
    # Ray turns tokens on by itself where an earlier local Ray left one; here it must not depend on that.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_AUTH_MODE"] = "disabled"
    with open(Path(temp) / "head.log", "wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 90
        while not _answers(f"{address}/api/version"):
            assert head.poll() is None, (Path(temp) / "head.log").read_text()
            assert time.monotonic() < deadline, "Ray's dashboard did not come up"
            time.sleep(0.3)
        yield ClusterConfig(kind="ray", address=address)
    finally:
        # --block ends its own children on SIGTERM; other people's clusters are not touched.
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(temp, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\n")
    return path


@pytest.fixture
def stand_in(recipe: Path) -> Callable[[ClusterConfig, str], JobPlan]:
    """A plan whose job is a line of Python; the recipe's path is its argument."""

    def make(cluster: ClusterConfig, code: str) -> JobPlan:
        plan = plan_job("data", recipe, cluster, {"input": "raw", "out": "out"}, [f"code={code}"])
        return replace(plan, command=(sys.executable, "-c", code, "{recipe}"))

    return make
