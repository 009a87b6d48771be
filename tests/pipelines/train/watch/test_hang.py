"""Ranks that hang for real, over gloo (hanging_rank.py)."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.train.watch.hang import HANG_EXIT
from pipelines.train.watch.report import newest_report, verdict_of

pytestmark = pytest.mark.timeout(120)
KILLED = -signal.SIGKILL


@pytest.fixture
def ranks(tmp_path):
    """Start the ranks, which hang as told; SIGSTOP the one that is to freeze. Their exit codes."""
    started = []

    def run(hang, freeze=None, world=2):
        script = Path(__file__).with_name("hanging_rank.py")
        for rank in range(world):
            command = [sys.executable, script, str(rank), str(world), tmp_path, hang]
            started.append(subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL))
        if freeze is not None:
            while not (tmp_path / "warm").exists():
                assert started[0].poll() is None
                time.sleep(0.05)
            started[freeze].send_signal(signal.SIGSTOP)
        return [process.wait() for process in started]

    yield run
    for process in started:
        process.kill()


@pytest.mark.parametrize(
    ("hang", "freeze", "codes", "verdict"),
    [
        ("loop", None, [HANG_EXIT, HANG_EXIT], "rank 1 (.*) hangs: 3s in step 3, loading"),
        ("lock", None, [HANG_EXIT, KILLED], "rank 1 (.*) has not been heard for 3s, last in .*: stopped or blocked"),
        ("", 1, [HANG_EXIT, KILLED], "rank 1 (.*) has not been heard for 3s, last in step .*: stopped or blocked"),
        ("", 0, [KILLED, HANG_EXIT], "rank 0 (.*) has not been heard for 3s, last in step .*: stopped or blocked"),
    ],
    ids=["an endless loop", "the interpreter's lock", "a stopped process", "the first judge is stopped"],
)
def test_a_rank_that_hangs_is_named_and_all_end(ranks, tmp_path, hang, freeze, codes, verdict):
    assert ranks(hang, freeze) == codes
    assert_like(verdict, verdict_of(newest_report(tmp_path)))


def test_the_report_has_the_stacks_of_all_that_live(ranks, tmp_path):
    ranks("loop")
    report = newest_report(tmp_path)
    assert "in all_reduce" in (report / "rank-0.txt").read_text()
    assert "hanging_rank.py" in (report / "rank-1.txt").read_text()


def test_and_of_one_that_blocks_its_own_threads(ranks, tmp_path):
    ranks("lock")
    assert "hanging_rank.py" in (newest_report(tmp_path) / "rank-1.txt").read_text()


def test_a_rank_alone_ends_itself(ranks, tmp_path):
    assert ranks("loop", world=1) == [HANG_EXIT]
    assert_like("rank 0 (.*) hangs: 3s in step 3, loading", verdict_of(newest_report(tmp_path)))


def test_looking_may_take_long_and_nothing_is_left_behind(ranks, tmp_path):
    """Rank 0 looks for twice the time that it may hang, and the other one waits for it."""
    assert ranks("looking") == [0, 0]
    assert newest_report(tmp_path) is None
    assert list((tmp_path / ".stacks").iterdir()) == []


def assert_like(pattern, text):
    assert re.match(pattern.replace("(.*)", r"\(.*\)"), text), text
