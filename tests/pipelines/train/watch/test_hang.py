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
    ("hang", "freeze", "codes", "verdict", "stacks"),
    [
        (
            "loop",
            None,
            [HANG_EXIT, HANG_EXIT],
            "rank 1 (.*) hangs: .*s in step 3, loading",
            {0: "in all_reduce", 1: "hanging_rank.py"},
        ),
        (
            "lock",
            None,
            [HANG_EXIT, KILLED],
            "rank 1 (.*) has not been heard for .*, last in .*: stopped or blocked",
            {0: "in all_reduce", 1: "hanging_rank.py"},
        ),
        ("", 1, [HANG_EXIT, KILLED], "rank 1 (.*) has not been heard for .*, last in step .*: stopped or blocked", {}),
        ("", 0, [KILLED, HANG_EXIT], "rank 0 (.*) has not been heard for .*, last in step .*: stopped or blocked", {}),
    ],
    ids=["an endless loop", "the interpreter's lock", "a stopped process", "the first judge is stopped"],
)
def test_a_rank_that_hangs_is_named_and_all_end(ranks, tmp_path, hang, freeze, codes, verdict, stacks):
    """All that live leave their stacks, as does one that blocks its own threads."""
    assert ranks(hang, freeze) == codes
    report = newest_report(tmp_path)
    assert_like(verdict, verdict_of(report))
    for rank, line in stacks.items():
        assert line in (report / f"rank-{rank}.txt").read_text()


def test_a_rank_alone_ends_itself(ranks, tmp_path):
    assert ranks("loop", world=1) == [HANG_EXIT]
    assert_like("rank 0 (.*) hangs: .*s in step 3, loading", verdict_of(newest_report(tmp_path)))


def test_looking_may_take_long_and_nothing_is_left_behind(ranks, tmp_path):
    """Rank 0 looks for twice the time that it may hang, and the other one waits for it."""
    assert ranks("looking") == [0, 0]
    assert newest_report(tmp_path) is None
    assert list((tmp_path / ".stacks").iterdir()) == []


def assert_like(pattern, text):
    assert re.match(pattern.replace("(.*)", r"\(.*\)"), text), text
