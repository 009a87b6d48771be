"""What a hostile function can do in the guarded child. ``timeit`` is a function that runs any statement."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from kineograph.media.faults import MediaFault
from kineograph.media.guard import GuardLimits, run_guarded
from kineograph.store.schema import Reason

LIMITS = GuardLimits(memory_bytes=2 * 2**30, cpu_s=20, wall_s=20)


def run(statement: str, limits: GuardLimits = LIMITS) -> float:
    return run_guarded("timeit:timeit", {"stmt": statement, "number": 1}, limits)


def fault(statement: str, limits: GuardLimits = LIMITS) -> MediaFault:
    with pytest.raises(MediaFault) as caught:
        run(statement, limits)
    return caught.value


def test_a_result_comes_back_as_it_was():
    assert run_guarded("posixpath:join", {"a": "ünï\udc80"}, LIMITS) == "ünï\udc80"


def test_a_large_result_comes_back_whole():
    text = "x" * 5_000_000
    assert run_guarded("posixpath:join", {"a": text}, LIMITS) == text


def test_a_hang_is_killed_at_the_wall_limit():
    began = time.monotonic()
    limits = LIMITS.model_copy(update={"wall_s": 0.5})
    assert fault("import time; time.sleep(60)", limits).reason == Reason.TIMEOUT
    assert time.monotonic() - began < 15


def test_a_busy_loop_is_killed_at_the_cpu_limit():
    assert fault("while True: pass", LIMITS.model_copy(update={"cpu_s": 1})).reason == Reason.TIMEOUT


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_outcome_that_names_the_signal(number):
    caught = fault(f"import os; os.kill(os.getpid(), {int(number)})")
    assert caught.reason == Reason.CRASHED
    assert number.name in caught.detail


def test_a_memory_bomb_stops_at_its_limit():
    caught = fault("x = bytearray(10 * 2**30)")
    assert caught.reason == Reason.CRASHED
    assert "2048 MiB" in caught.detail


def test_the_child_can_write_no_file(tmp_path):
    target = tmp_path / "file"
    fault(f"open({str(target)!r}, 'w').write('x' * 100000)")
    assert not target.exists() or target.stat().st_size == 0


def test_a_fault_keeps_its_reason_and_detail():
    raising = "from kineograph.media.faults import MediaFault as F, Reason; raise F(Reason.CORRUPT, 'no\\nframe')"
    caught = fault(raising)
    assert (caught.reason, caught.detail) == (Reason.CORRUPT, "no frame")


def test_any_other_exception_is_a_crash_with_its_text():
    assert fault("raise ValueError('odd')").detail == "ValueError: odd"


def test_what_a_child_prints_does_not_mix_with_its_answer():
    assert run("import os; os.write(1, b'noise'); os.write(2, b'noise')") >= 0


def test_a_killed_server_is_replaced():
    run("pass")
    servers = [p for p in psutil.Process().children() if "kineograph.media.guard_server" in p.cmdline()]
    assert servers
    for server in servers:
        server.kill()
    assert run("pass") >= 0


def test_no_child_outlives_a_caller_that_is_killed(tmp_path):
    # The child cannot write, but it can make an empty file that is named by its process id.
    statement = f"import os, time; open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep(600)"
    script = (
        "from kineograph.media.guard import *\n"
        f"run_guarded('timeit:timeit', {{'stmt': {statement!r}, 'number': 1}}, GuardLimits())\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script])
    child = psutil.Process(int(wait_for(lambda: next(iter(os.listdir(tmp_path)), None))))
    caller.kill()
    caller.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return value
