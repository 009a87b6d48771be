"""`kineo submit` and `kineo jobs` on this machine, as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a stand-in for Python that runs the job's part: it fails or says its arguments."""
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ran $3 $4"\nexit "${JOB_EXIT:-0}"\n')
    python.chmod(0o755)
    return tmp_path


def kineo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "kineograph.cli.main", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def cluster(folder: Path, exit_code: int) -> str:
    path = folder / f"exit{exit_code}.yaml"
    path.write_text(f"kind: local\npython: {folder / 'python'}\nenv: {{JOB_EXIT: '{exit_code}'}}\n")
    return str(path)


def test_the_jobs_log_and_exit_code_are_the_commands(folder: Path) -> None:
    done = kineo(folder, "submit", "data", "tiny.yaml", "--cluster", cluster(folder, 7))
    assert done.returncode == 7
    assert "ran data run\n" in done.stdout
    assert "failed with exit code 7" in done.stdout


def test_a_second_submit_of_a_good_job_tells_so_and_runs_nothing(folder: Path) -> None:
    arguments = ("submit", "data", "tiny.yaml", "--cluster", cluster(folder, 0))
    first, second = kineo(folder, *arguments), kineo(folder, *arguments)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "has succeeded already" in second.stderr
    assert "ran" not in second.stdout
    assert "ran data run\n" in kineo(folder, *arguments, "--again").stdout


def test_a_failed_job_gets_a_suffix_and_the_list_shows_both(folder: Path) -> None:
    arguments = ("submit", "train", "tiny.yaml", "--cluster", cluster(folder, 3), "--json")
    ids = [json.loads(kineo(folder, *arguments).stdout)["id"] for _ in range(2)]
    assert ids[1] == f"{ids[0]}-2"
    listed = json.loads(kineo(folder, "jobs", "list", "--json").stdout)["jobs"]
    assert [(job["id"], job["state"], job["exit_code"]) for job in listed] == [
        (ids[1], "failed", 3),
        (ids[0], "failed", 3),
    ]
    table = kineo(folder, "jobs", "list").stdout.splitlines()
    assert table[0].split() == ["JOB", "KIND", "STATE", "EXIT", "SUBMITTED", "TOOK"]
    assert table[1].split()[:4] == [ids[1], "train", "failed", "3"]
    assert "ran train" in kineo(folder, "jobs", "logs", ids[0]).stdout
    assert kineo(folder, "jobs", "logs", ids[0], "--follow").returncode == 3


def test_json_leaves_stdout_to_one_object(folder: Path) -> None:
    done = kineo(folder, "submit", "data", "tiny.yaml", "--cluster", cluster(folder, 0), "--json")
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert "ran data run" in done.stderr


def test_a_detached_job_returns_at_once_and_is_found_again(folder: Path) -> None:
    done = kineo(folder, "submit", "data", "tiny.yaml", "--cluster", cluster(folder, 5), "--detach", "--json")
    assert done.returncode in (0, 5)  # 5 when the job was faster than the answer
    assert kineo(folder, "jobs", "logs", json.loads(done.stdout)["id"], "--follow").returncode == 5


def test_dry_run_shows_the_command_and_starts_nothing(folder: Path) -> None:
    arguments = (
        "submit",
        "eval",
        "tiny.yaml",
        "--checkpoint",
        "c",
        "--set",
        "a=1",
        "--on",
        "ray",
        "--dry-run",
        "--json",
    )
    plan = json.loads(kineo(folder, *arguments).stdout)
    assert plan["command"][3:] == [
        *("eval", "tiny.yaml", "--checkpoint", f"{folder}/c", "--out", f"{folder}/runs/eval", "--set", "a=1")
    ]
    assert not (folder / "runs").exists()


def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_1(folder: Path) -> None:
    (folder / "dead.yaml").write_text("kind: ray\naddress: http://127.0.0.1:9\n")
    done = kineo(folder, "submit", "data", "tiny.yaml", "--cluster", "dead.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no Ray cluster answers at http://127.0.0.1:9: start one with 'ray start --head'" in done.stderr


def test_on_and_the_cluster_file_must_agree(folder: Path) -> None:
    done = kineo(folder, "submit", "data", "tiny.yaml", "--on", "ray", "--cluster", cluster(folder, 0))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
