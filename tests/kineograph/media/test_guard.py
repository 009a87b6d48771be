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
from kineograph.media.guard_server import FORBIDDEN_CALLS
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


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT"), (signal.SIGKILL, "SIGKILL"), (40, "40")],
)
def test_a_crash_is_an_outcome_that_names_the_signal(number, name):
    caught = fault(f"import os; os.kill(os.getpid(), {int(number)})")
    assert caught.reason == Reason.CRASHED
    assert f"signal {name}" in caught.detail


def test_a_memory_bomb_stops_at_its_limit():
    caught = fault("x = bytearray(10 * 2**30)")
    assert caught.reason == Reason.CRASHED
    assert "2048 MiB" in caught.detail


def test_the_child_can_write_no_file(tmp_path):
    target = tmp_path / "file"
    fault(f"open({str(target)!r}, 'w').write('x' * 100000)")
    assert not target.exists() or target.stat().st_size == 0


@pytest.mark.skipif(os.uname().machine not in FORBIDDEN_CALLS, reason="no filter is known for this machine")
@pytest.mark.parametrize(
    "statement",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['/bin/true'])",
    ],
)
def test_the_child_can_open_no_socket_and_start_no_program(statement):
    assert fault(statement).detail == "Operation not permitted"


def test_the_child_is_the_first_to_go_when_the_machine_runs_out_of_memory():
    assert run("assert open('/proc/self/oom_score_adj').read() == '1000\\n'") >= 0


def test_an_answer_that_makes_no_sense_is_a_crash():
    # A decoder that is taken over can write to any of the child's descriptors, the answer's too.
    writing = "import os\nfor d in range(3, 64):\n    try: os.write(d, b'}{')\n    except OSError: pass"
    assert fault(writing).reason == Reason.CRASHED


def test_a_reason_that_does_not_exist_is_a_crash():
    forged = '{"fault": "no such", "detail": []}'
    writing = f"import os\nfor d in range(3, 64):\n    try: os.write(d, {forged.encode()!r})\n    except OSError: pass"
    assert fault(writing + "\nos._exit(0)").reason == Reason.CRASHED


def test_limits_that_the_machine_has_set_lower_already_stay():
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))\n"
        "from kineograph.media.guard import *\n"
        "print(run_guarded('posixpath:join', {'a': 'fine'}, GuardLimits(cpu_s=5000)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert ran.stdout == "fine\n", ran.stderr


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
