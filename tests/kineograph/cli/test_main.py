"""`kineo` answers at once, and with the right exit code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from kineograph.cli.main import COMMANDS

HEAVY = ("torch", "ray", "numpy", "mlflow", "deepspeed", "av", "pydantic")


def kineo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kineograph.cli.main", *arguments], capture_output=True, text=True, check=False
    )


def imported_by(*arguments: str) -> set[str]:
    code = f"""
import json, sys
from kineograph.cli.main import main
try:
    main({list(arguments)!r})
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("submit", "--help"), ("jobs", "list", "--help"), ("ui", "-h"), ("doctor", "-h")],
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments).isdisjoint(HEAVY)


def test_help_names_every_command() -> None:
    said = kineo("--help").stdout
    assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_file(name: str) -> None:
    assert importlib.util.find_spec(COMMANDS[name][0]) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "No such command 'nope'"),
        (("submit", "data"), "Missing argument 'RECIPE'"),
        (("submit", "data", "no-such-recipe"), "no recipe 'no-such-recipe'"),
        (("submit", "data", "demo", "--on", "slurm"), "'slurm' is not one of"),
        (("jobs", "stop", "nope"), "no job nope"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2_and_no_trace(arguments: tuple[str, ...], said: str) -> None:
    done = kineo(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_trace() -> None:
    assert "Traceback" in kineo("submit", "data", "no-such-recipe", "--debug").stderr
