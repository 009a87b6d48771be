"""Jobs on a real Ray cluster, started as users start one."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kineograph.errors import Failure, UserError
from kineograph.jobs.cluster import ClusterConfig
from kineograph.jobs.plan import JobPlan
from kineograph.jobs.ray import RayJobs, choose_auth_mode, runtime_env
from kineograph.jobs.record import JobState

StandIn = Callable[[ClusterConfig, str], JobPlan]

# Joins as `kineo` does, and fails with a code of its own.
JOIN_AND_FAIL = """
import os, sys
from kineograph.ray_session import start_ray
start_ray()
import ray, kineograph, pipelines
print("cpus", ray.cluster_resources()["CPU"])
print("code", kineograph.__file__, pipelines.__file__)
print("recipe", open(sys.argv[1]).read().strip(), os.listdir())
sys.exit(7)
"""


@pytest.mark.slow
def test_a_failing_job_runs_on_the_cluster_with_this_code_and_returns_its_exit_code(
    ray_cluster: ClusterConfig,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # What a shell may hold must not send the job elsewhere.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    jobs = RayJobs(ray_cluster)
    plan = stand_in(ray_cluster, JOIN_AND_FAIL)
    record, attached = jobs.submit(plan)
    said: list[str] = []
    ended = jobs.follow(record.id, said.append)
    text = "".join(said)
    assert (ended.kind, ended.state, ended.shell_exit_code, attached) == ("data", JobState.FAILED, 7, False)
    assert "cpus 2.0" in text
    # The submitter's code was uploaded and is what runs; the recipe is all there is in the working directory.
    assert re.search(r"code \S+/_ray_pkg_\w+/kineograph/__init__.py \S+/_ray_pkg_\w+/pipelines/__init__.py", text)
    assert "recipe name: tiny ['tiny.yaml']" in text
    assert not re.search(r"Running entrypoint|INFO \w+\.py|Connecting to existing Ray", text)
    assert "packaging.py" not in capfd.readouterr().err
    again, attached = jobs.submit(plan)
    assert (again.id, attached) == (f"{plan.job_id}-2", False)
    jobs.stop(again.id)


@pytest.mark.slow
def test_submitting_twice_runs_once_and_lines_come_as_they_are_printed(
    ray_cluster: ClusterConfig, stand_in: StandIn, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.1)"
    code = f"print('first'); import os, time\n{wait}\nprint('last')"
    plan = stand_in(ray_cluster, code)
    jobs = RayJobs(ray_cluster)
    answers = [jobs.submit(plan), RayJobs(ray_cluster).submit(plan)]
    assert [attached for _, attached in answers] == [False, True]
    said: list[str] = []

    def write(text: str) -> None:
        said.append(text)
        if "first" in text:
            gate.touch()  # the job ends only when its first line was seen while it ran

    assert jobs.follow(plan.job_id, write).shell_exit_code == 0
    assert said[-1] == "last\n"
    found, attached = jobs.submit(plan)
    assert (found.id, found.state, attached) == (plan.job_id, JobState.SUCCEEDED, True)
    assert jobs.logs(plan.job_id).endswith("first\nlast\n")


@pytest.mark.slow
def test_stop_stops_and_the_follower_learns_of_it(ray_cluster: ClusterConfig, stand_in: StandIn) -> None:
    jobs = RayJobs(ray_cluster)
    plan = stand_in(ray_cluster, "print('up'); import time; time.sleep(600)")
    jobs.submit(plan)
    up = threading.Event()
    ended = []

    def follow() -> None:
        ended.append(RayJobs(ray_cluster).follow(plan.job_id, lambda text: up.set() if "up" in text else None))

    follower = threading.Thread(target=follow)
    follower.start()
    assert up.wait(60)
    assert jobs.stop(plan.job_id).state is JobState.STOPPED
    follower.join(60)
    assert (ended[0].state, ended[0].shell_exit_code) == (JobState.STOPPED, 130)
    with pytest.raises(UserError, match="no job nope"):
        jobs.stop("nope")


def test_a_dead_address_is_one_line_that_says_what_to_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else gets the port
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Failure, match=f"no Ray cluster answers at {address}: start one with 'ray start --head'"):
            RayJobs(ClusterConfig(kind="ray", address=address))


@pytest.fixture
def guarded() -> Iterator[str]:
    """A server that answers everything with 401, as a Ray dashboard does that asks for tokens."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Guard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_rays_token_goes_to_this_machine_and_to_no_other_unasked(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"})
    with pytest.raises(Failure, match="asks for a token"):
        choose_auth_mode(guarded, is_here=False)
    assert "RAY_AUTH_MODE" not in os.environ
    choose_auth_mode(guarded, is_here=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    choose_auth_mode(guarded, is_here=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_only_the_staged_folder_and_the_two_packages_are_uploaded(stand_in: StandIn) -> None:
    env = runtime_env(stand_in(ClusterConfig(kind="ray", env={"A": "1"}), ""), "/staged")
    assert env["working_dir"] == "/staged"
    assert [Path(folder).name for folder in env["py_modules"]] == ["kineograph", "pipelines"]
    assert "**/.git" in env["excludes"]
    assert env["env_vars"]["A"] == "1"
    bare = runtime_env(stand_in(ClusterConfig(kind="ray", ship_code=False), ""), "/staged")
    assert "py_modules" not in bare
