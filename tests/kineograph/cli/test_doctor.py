"""`kineo doctor` turns whatever is broken into a row."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from kineograph.cli import doctor as module
from kineograph.cli.doctor import Check, Probe, doctor, examine, run_probes


def probe(name: str, code: str) -> Probe:
    return Probe(name, code, lambda facts: ("ok", str(facts["version"])), f"pip install {name}")


def test_a_group_reports_what_worked_before_it_broke() -> None:
    group = [
        probe("good", "facts = {'version': 1}"),
        probe("bad", "import no_such_module"),
        probe("after", ""),
    ]
    good, bad, after = run_probes(group)
    assert good == Check("good", "ok", "1", "pip install good")
    assert (bad.status, bad.found) == ("missing", "ModuleNotFoundError: No module named 'no_such_module'")
    assert after.status == "missing"


@pytest.mark.parametrize("code", ["import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "import os; os._exit(0)"])
def test_a_crash_is_a_row(code: str) -> None:
    [check] = run_probes([probe("crash", code)])
    assert check.status == "missing"
    assert check.fix == "pip install crash"


def test_a_hang_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMPORT_LIMIT_S", 1.0)
    first, hang = run_probes([probe("first", "facts = {'version': 1}"), probe("hang", "import time; time.sleep(60)")])
    assert first.status == "ok"
    assert (hang.status, hang.found) == ("missing", "its import takes more than 1 s")


@pytest.mark.parametrize(("needed", "code"), [(True, 1), (False, 0)])
def test_the_exit_code_says_whether_the_demo_can_run(
    needed: bool, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = Check("thing", "missing", "no thing", "pip install thing", needed)
    monkeypatch.setattr(module, "examine", lambda runs_dir: [row])
    told = CliRunner().invoke(doctor, ["--runs-dir", str(tmp_path)], standalone_mode=False)
    assert told.return_value == code
    assert "-> pip install thing" in told.output
    facts = json.loads(CliRunner().invoke(doctor, ["--json"], standalone_mode=False).output)
    assert facts["ok"] is not needed


def test_a_store_that_is_no_database_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROBES", ())
    store = tmp_path / "mlflow.db"

    def row() -> Check:
        return next(check for check in examine(tmp_path) if check.name == "MLflow store")

    assert row().status == "ok"
    assert not store.exists()
    store.write_text("not a database, and longer than its header would be, " * 20)
    assert row().status == "missing"
    store.unlink()
    with sqlite3.connect(store) as database:
        database.execute("create table runs (id)")
    assert (row().status, row().found) == ("ok", f"sqlite:///{store}, 0 runs")


@pytest.mark.slow
def test_everything_the_demo_needs_works_here(tmp_path: Path) -> None:
    told = CliRunner().invoke(doctor, ["--runs-dir", str(tmp_path), "--json"], standalone_mode=False)
    checks = {check["name"]: check for check in json.loads(told.output)["checks"]}
    assert told.return_value == 0, checks
    names = {"machine", "torch", "CUDA", "DeepSpeed", "CLIP", "MLflow", "Ray", "PyAV", "decord"}
    assert names | {"shared memory", "disk", "text encoder", "MLflow store"} == set(checks)
    assert "h264" in checks["PyAV"]["found"]
