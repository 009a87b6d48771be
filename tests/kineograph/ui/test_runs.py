"""Runs are found by what is in their folders, and damaged ones do not break the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kineograph.ui.runs import find_runs

Fill = Callable[[Path], Path]


def test_each_kind_is_found_newest_first_with_its_numbers(tmp_path: Path, fill: Fill) -> None:
    runs = find_runs(fill(tmp_path))
    assert [(run.kind, run.path, run.finished) for run in runs] == [
        ("evaluation", "demo/eval", True),
        ("training", "demo/train", False),
        ("curation", "data", True),
    ]
    assert runs[0].numbers == (("color accuracy", "0.98 [0.95, 1.00]"), ("flicker", "0.50"))
    assert runs[2].numbers == (("sources", "1,200"), ("seconds kept", "16.04"), ("frames", "9"))
    assert runs[2].files == ("report.html", "manifest.json", "recipe.yaml")


def test_damaged_summaries_show_no_numbers(tmp_path: Path, fill: Fill) -> None:
    fill(tmp_path)
    for damage in ("{", "[1]", "null", "\udcff", "[" * 100_000):
        (tmp_path / "data" / "manifest.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
        [curation] = [run for run in find_runs(tmp_path) if run.kind == "curation"]
        assert curation.numbers == ()


def test_a_run_behind_a_link_is_not_shown(tmp_path: Path, fill: Fill) -> None:
    fill(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    assert find_runs(tmp_path / "runs") == []


def test_a_directory_that_is_itself_a_run(tmp_path: Path, fill: Fill) -> None:
    [run] = find_runs(fill(tmp_path) / "data")
    assert run.path == "."
