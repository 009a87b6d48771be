"""Decoding processes that die, hang or raise, and that none is left however the rank ends."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from kineograph.errors import Failure
from kineograph.store.loader import collate
from kineograph.store.shards import ShardReader
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.loading.loading import Loading
from tests.pipelines.train.loading.tiny_run import VIDEOS, Poison, clip_id, ids_and_pictures, make_run, slots

BAD = clip_id(VIDEOS, 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("videos"), [VIDEOS])


def loading(run, collate, numbers, **config):
    reader = ShardReader(run)
    work = [[slots(reader, VIDEOS, some)] for some in numbers]
    return Loading(reader, work, collate, LoadingConfig(**{"workers": 1, "cache_mib": 0, **config}))


def alive(pids):
    """Those of ``pids`` that are processes and not zombies that nobody has waited for."""
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("how", "said"), [("SIGKILL", "was killed by SIGKILL"), ("SIGSEGV", "died of SIGSEGV")])
def test_a_process_that_dies_is_named_with_its_clips_where_they_are_due(run, how, said):
    with loading(run, Poison((BAD,), how), [[0, 1], [5, 6], [7]]) as batches:
        next(batches)
        with pytest.raises(Failure) as caught:
            next(batches)
    line = str(caught.value)
    assert line.startswith(f"a decoding process {said}")
    assert f"{clip_id(VIDEOS, 5)} of shards/32x32x9-0.parquet, {BAD} of shards/32x32x9-0.parquet" in line
    assert "data.skip_damaged=true" in line
    assert "\n" not in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_that_ends_its_process_is_left_out_where_that_is_asked_for(run, workers):
    numbers = [[0, 1], [5, 6, 7], [8, 9], [6, 10]]
    with loading(run, Poison((BAD,), "SIGSEGV"), numbers, skip_damaged=True, workers=workers) as batches:
        loaded = list(batches)
    assert [one.weights.tolist() for one in loaded] == [[1, 1], [1, 0, 1], [1, 1], [0, 1]]
    assert [one.damaged for one in loaded] == [
        (),
        (
            f"clip {BAD} of shards/32x32x9-0.parquet is damaged: a decoding process died of SIGSEGV at it; "
            "another one stands in for it",
        ),
        (),
        (),
    ]


def test_a_process_that_was_killed_from_outside_costs_no_clip_where_clips_may_be_left_out(run, tmp_path):
    (tmp_path / BAD).touch()
    poison = Poison((BAD,), "SIGKILL", armed=tmp_path)
    with loading(run, poison, [[5, 6, 7], [6]], skip_damaged=True) as batches:
        assert [one.weights.tolist() for one in batches] == [[1, 1, 1], [1]]


def test_an_idle_process_that_dies_is_replaced(run):
    with loading(run, ids_and_pictures, [[number] for number in range(12)], read_ahead=2) as batches:
        for number in range(12):
            if number == 6:
                wait_until(lambda: batches._ready.qsize() == 2)  # it has nothing to do
                (pid,) = batches.pids
                psutil.Process(pid).kill()
                wait_until(lambda: not batches.pids)
            assert next(batches).batch["number"].tolist() == [number]


def test_a_process_that_hangs_is_ended(run):
    with (
        loading(run, Poison((BAD,), "hang"), [[0], [6, 5]], clip_seconds=2.0) as batches,
        pytest.raises(Failure, match=rf"a decoding process took more than 2 s at clip {BAD} of"),
    ):
        list(batches)


def test_an_error_of_collate_says_where_it_was_raised(run):
    with (
        loading(run, Poison((BAD,), "raise"), [[6]], skip_damaged=True) as batches,
        pytest.raises(RuntimeError, match="RuntimeError: the collate is broken") as caught,
    ):
        next(batches)
    assert "tiny_run.py" in str(caught.value.__cause__)


def nowhere(clips, slots):
    """What a process cannot import."""


def test_a_collate_that_cannot_be_imported_there_is_an_error(run, monkeypatch):
    nowhere.__module__ = "only_here"
    monkeypatch.setitem(sys.modules, "only_here", sys.modules[__name__])
    with loading(run, nowhere, [[0]]) as batches, pytest.raises(RuntimeError, match="only_here"):
        next(batches)


def test_no_process_is_left_behind(run):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    endless = ([(s,)] for s in slots(ShardReader(run), VIDEOS, range(20)) * 1000)
    with Loading(ShardReader(run), endless, collate, LoadingConfig(workers=3, cache_mib=0)) as batches:
        next(batches)
        assert len(batches.pids) == 3
        pids = batches.pids
    assert not alive(pids)
    with pytest.raises(StopIteration):
        next(batches)
    with pytest.raises(ZeroDivisionError), loading(run, collate, [[0]] * 9, workers=2) as batches:  # not even begun
        raise ZeroDivisionError
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


RANK = """
import sys, time
from kineograph.store.shards import ShardReader
from pipelines.train.loading.config import LoadingConfig
from pipelines.train.loading.loading import Loading
from tests.pipelines.train.loading.tiny_run import VIDEOS, Poison, clip_id, slots
reader = ShardReader(sys.argv[1])
work = [[slots(reader, VIDEOS, [0])], [slots(reader, VIDEOS, [6])]]
with Loading(reader, work, Poison((clip_id(VIDEOS, 6),), "hang"), LoadingConfig(workers=2, cache_mib=0)) as batches:
    next(batches)
    print(*batches.pids, flush=True)
    time.sleep(1000)
"""


def test_processes_end_with_a_rank_that_is_killed_also_in_the_middle_of_a_clip(run):
    path = ":".join(p for p in sys.path if p)
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, run], stdout=subprocess.PIPE, env={"PYTHONPATH": path}, text=True
    )
    try:
        pids = [int(pid) for pid in rank.stdout.readline().split()]
        assert len(alive(pids)) == 2
        rank.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(pids))
    finally:
        rank.kill()
        rank.communicate()
