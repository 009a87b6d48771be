"""Local jobs are real processes: followed, recorded, stopped with all they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kineograph.errors import UserError
from kineograph.jobs.cluster import ClusterConfig
from kineograph.jobs.local import LocalJobs
from kineograph.jobs.plan import JobPlan
from kineograph.jobs.record import JobState

LOCAL = ClusterConfig()
StandIn = Callable[[ClusterConfig, str], JobPlan]


def wait_for(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_log_recipe_and_exit_code_come_back(tmp_path: Path, stand_in: StandIn) -> None:
    jobs = LocalJobs(tmp_path / "runs")
    plan = stand_in(LOCAL, "import sys; print(open(sys.argv[1]).read(), 'ünicode'); sys.exit(7)")
    record, attached = jobs.submit(plan)
    said: list[str] = []
    ended = jobs.follow(record.id, said.append)
    assert not attached
    assert "".join(said) == jobs.logs(record.id) == "name: tiny\n ünicode\n"
    assert (ended.state, ended.shell_exit_code) == (JobState.FAILED, 7)


def test_a_failed_job_is_submitted_again_and_a_succeeded_one_is_not(tmp_path: Path, stand_in: StandIn) -> None:
    jobs = LocalJobs(tmp_path / "runs")
    # Fails the first time, succeeds the second.
    plan = stand_in(LOCAL, f"import os; p = {str(tmp_path / 'm')!r}; e = os.path.exists(p); open(p, 'w'); exit(not e)")
    first, _ = jobs.submit(plan)
    assert jobs.follow(first.id, print).state is JobState.FAILED
    second, attached = jobs.submit(plan)
    assert (second.id, attached) == (f"{first.id}-2", False)
    assert jobs.follow(second.id, print).state is JobState.SUCCEEDED
    third, attached = jobs.submit(plan)
    assert (third.id, third.state, attached) == (second.id, JobState.SUCCEEDED, True)
    assert [record.id for record in jobs.records()] == [second.id, first.id]


def test_two_submitters_at_once_start_one_job(tmp_path: Path, stand_in: StandIn) -> None:
    jobs = LocalJobs(tmp_path / "runs")
    plan = stand_in(LOCAL, f"open({str(tmp_path / 'count')!r}, 'a').write('x'); import time; time.sleep(2)")
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(jobs.submit(plan))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs.follow(plan.job_id, print)
    assert sorted(attached for _, attached in answers) == [False, True, True, True]
    assert (tmp_path / "count").read_text() == "x"


def test_stop_ends_the_job_and_its_children(tmp_path: Path, stand_in: StandIn) -> None:
    jobs = LocalJobs(tmp_path / "runs")
    child = "import subprocess; c = subprocess.Popen(['sleep', '600'], start_new_session=True); "
    child += "print(c.pid, flush=True); c.wait()"
    record, _ = jobs.submit(stand_in(LOCAL, child))
    wait_for(lambda: jobs.logs(record.id).endswith("\n"))
    grandchild = int(jobs.logs(record.id).split()[0])
    started = time.monotonic()
    stopped = jobs.stop(record.id)
    assert (stopped.state, stopped.shell_exit_code) == (JobState.STOPPED, 130)
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")
    assert time.monotonic() - started < 60
    assert jobs.stop(record.id) == stopped


def test_ctrl_c_in_the_submitting_terminal_stops_the_job(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{}")
    code = f"""
from dataclasses import replace
from pathlib import Path
import sys
from kineograph.cli.submit import follow_to_end
from kineograph.jobs.cluster import ClusterConfig
from kineograph.jobs.local import LocalJobs
from kineograph.jobs.plan import plan_job
plan = plan_job("data", Path({str(recipe)!r}), ClusterConfig(), {{}})
plan = replace(plan, command=(sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"))
jobs = LocalJobs({str(tmp_path / "runs")!r})
record, _ = jobs.submit(plan)
sys.exit(follow_to_end(jobs, record.id, plan.cluster, False).shell_exit_code)
"""
    submitter = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        # Tests that run in the background inherit that Control-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert submitter.stdout is not None
    assert submitter.stdout.readline() == "up\n"
    submitter.send_signal(signal.SIGINT)
    assert submitter.wait(60) == 130
    [record] = LocalJobs(tmp_path / "runs").records()
    assert record.state is JobState.STOPPED


def test_a_job_whose_supervisor_was_killed_has_failed(tmp_path: Path, stand_in: StandIn) -> None:
    jobs = LocalJobs(tmp_path / "runs")
    record, _ = jobs.submit(stand_in(LOCAL, "import os; print(os.getpid(), flush=True); import time; time.sleep(600)"))
    wait_for(lambda: jobs.logs(record.id).endswith("\n"))
    running = jobs.get(record.id)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    os.kill(int(jobs.logs(record.id)), signal.SIGKILL)
    wait_for(lambda: jobs.records()[0].state is JobState.FAILED)
    assert "vanished" in jobs.records()[0].detail
    assert jobs.follow(record.id, print).shell_exit_code == 1


def test_a_program_that_is_not_there_is_a_failed_job_that_says_so(tmp_path: Path, stand_in: StandIn) -> None:
    jobs = LocalJobs(tmp_path / "runs")
    plan = stand_in(ClusterConfig(python="/no/python"), "")
    plan = replace(plan, command=("/no/python",))
    record, _ = jobs.submit(plan)
    ended = jobs.follow(record.id, print)
    assert (ended.state, ended.shell_exit_code) == (JobState.FAILED, 1)
    assert ended.detail == "cannot start /no/python: No such file or directory"


def test_a_local_job_is_not_sent_to_a_cluster_of_the_shell(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    jobs = LocalJobs(tmp_path / "runs")
    cluster = ClusterConfig(env={"KIND": "of cluster file"})
    record, _ = jobs.submit(stand_in(cluster, "import os; print(os.environ.get('RAY_ADDRESS'), os.environ['KIND'])"))
    jobs.follow(record.id, print)
    assert jobs.logs(record.id) == "None of cluster file\n"


@pytest.mark.parametrize("job_id", ["nope", "", "../x", ".hidden"])
def test_an_unknown_job_is_one_clear_line(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(UserError, match="no job"):
        LocalJobs(tmp_path).stop(job_id)
