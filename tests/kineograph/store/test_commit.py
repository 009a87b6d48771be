import os
import signal
import subprocess
import sys
import time

import pytest

from kineograph.errors import DiskFullError
from kineograph.store.commit import committed, remove_leftovers, sha256_file, write_bytes, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    write_bytes(tmp_path / "a", b"old")

    def fail():
        with committed(tmp_path / "a") as temp:
            temp.write_bytes(b"half")
            raise KeyError("broken off")

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_folders_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"ü": 1})
    assert (tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    # The kernel refuses what is beyond the limit as it does on a full disk, without the rights to make one.
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from kineograph.store.commit import write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from kineograph.errors import DiskFullError\n"
        "try: write_bytes(Path(sys.argv[1]), b'x' * 5000)\n"
        "except DiskFullError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("the disk is full at")
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_dev_full_is_a_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")

    def write():
        with committed(tmp_path / "a"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(DiskFullError):
        write()


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_can_be_removed(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    script = (
        "import sys, time; from pathlib import Path\n"
        "from kineograph.store.commit import committed\n"
        "with committed(Path(sys.argv[1])) as temp:\n"
        "    temp.write_bytes(b'half'); print(flush=True); time.sleep(600)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a")], stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from kineograph.store.commit import write_bytes\n"
        "for _ in range(50): write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 1000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a"), letter]) for letter in "xyz"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a").exists():
            seen.add((tmp_path / "a").read_bytes())
        time.sleep(0.001)
    assert all(writer.returncode == 0 for writer in writers)
    assert seen <= {letter.encode() * 1000 for letter in "xyz"}
    assert os.listdir(tmp_path) == ["a"]


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
