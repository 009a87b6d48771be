import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from kineograph.errors import DiskFullError
from pipelines.data.inputs.scratch import Scratch


def of(content):
    """A fill that writes ``content``."""
    return lambda part: part.write(content)


def unwanted(part):
    raise AssertionError("it is there already")


def names(folder):
    return sorted(entry.name for entry in os.scandir(folder) if entry.name != ".total")


def bytes_in(folder):
    return sum((folder / name).stat().st_size for name in names(folder))


def test_a_file_is_made_once(tmp_path):
    scratch = Scratch(tmp_path / "scratch", 100)
    with scratch.obtain("a", 3, of(b"abc")) as path:
        assert path.read_bytes() == b"abc"
    with scratch.obtain("a", 3, unwanted) as path:
        assert path.read_bytes() == b"abc"


def test_what_was_used_longest_ago_makes_room(tmp_path):
    scratch = Scratch(tmp_path, 100)
    for name in "ab":
        with scratch.obtain(name, 40, of(b"x" * 40)):
            pass
    os.utime(tmp_path / "a", (1, 1))
    os.utime(tmp_path / "b", (2, 2))
    with scratch.obtain("a", 40, unwanted):  # now b is the oldest
        pass
    with scratch.obtain("c", 40, of(b"x" * 40)):
        assert names(tmp_path) == ["a", "c"]
    assert bytes_in(tmp_path) <= 100


def test_a_file_in_use_stays_and_who_needs_its_room_waits(tmp_path):
    scratch, order = Scratch(tmp_path, 100), []

    def want():
        with scratch.obtain("b", 60, of(b"y" * 60)):
            order.append("b is there")

    with scratch.obtain("a", 60, of(b"x" * 60)) as path:
        thread = threading.Thread(target=want)
        thread.start()
        thread.join(0.3)
        assert path.exists()
        order.append("a is let go")
    thread.join(20)
    assert order == ["a is let go", "b is there"]
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("declared", [None, 1])
def test_a_file_larger_than_declared_gets_its_room(tmp_path, declared):
    scratch = Scratch(tmp_path, 100)
    with scratch.obtain("old", 50, of(b"x" * 50)):
        pass
    with scratch.obtain("new", declared, lambda part: [part.write(b"y" * 20) for _ in range(4)]) as path:
        assert path.stat().st_size == 80
    assert names(tmp_path) == ["new"]


def test_two_that_outgrow_their_room_do_not_wait_for_each_other(tmp_path):
    scratch, done = Scratch(tmp_path, 100), []
    both_began = threading.Barrier(2, timeout=10)

    def want(name):
        tries = []

        def fill(part):
            tries.append(name)
            part.write(b"x" * 40)
            if len(tries) == 1:
                both_began.wait()
            part.write(b"x" * 40)

        with scratch.obtain(name, 40, fill) as path:
            done.append(path.stat().st_size)

    threads = [threading.Thread(target=want, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [80, 80]


def test_an_error_leaves_nothing_and_gives_the_room_back(tmp_path):
    scratch = Scratch(tmp_path, 100)

    def fill(part):
        part.write(b"x" * 50)
        raise ValueError("no more")

    for _ in range(3):
        with pytest.raises(ValueError, match="no more"), scratch.obtain("a", 80, fill):
            pass
    assert names(tmp_path) == []
    assert (tmp_path / ".total").read_text().strip() == "0"


DIES = """
import os, pathlib, signal, sys
from pipelines.data.inputs.scratch import Scratch
def fill(part):
    part.write(b"x" * 50)
    os.kill(os.getpid(), signal.SIGKILL)
with Scratch(pathlib.Path(sys.argv[1]), 100).obtain("a", 80, fill):
    pass
"""


def test_a_killed_process_leaves_no_lock_and_no_room_taken(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], env=environment, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["a.part"]
    scratch = Scratch(tmp_path, 100)
    with scratch.obtain("b", 90, of(b"y" * 90)):  # the dead one's room
        assert names(tmp_path) == ["b"]
    with scratch.obtain("a", 80, of(b"z" * 80)) as path:
        assert path.read_bytes() == b"z" * 80


def test_a_damaged_account_is_counted_again(tmp_path):
    scratch = Scratch(tmp_path, 100)
    with scratch.obtain("a", 60, of(b"x" * 60)):
        pass
    (tmp_path / ".total").write_text("many")
    with scratch.obtain("b", 60, of(b"x" * 60)):
        assert names(tmp_path) == ["b"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        scratch = Scratch(tmp_path, 10 << 20)
        with (
            pytest.raises(DiskFullError, match="the disk is full"),
            scratch.obtain("a", 2 << 20, of(b"x" * (2 << 20))),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_clear_removes_what_nobody_uses(tmp_path):
    scratch = Scratch(tmp_path, 100)
    with scratch.obtain("a", 3, of(b"abc")):
        pass
    with scratch.obtain("b", 3, of(b"abc")):
        scratch.clear()
        assert names(tmp_path) == ["b"]
