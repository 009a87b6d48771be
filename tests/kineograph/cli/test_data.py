"""`kineo data` as people use it: exit codes, one line for each mistake, facts as JSON."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kineograph.cli.main import main
from kineograph.media.encode import write_mp4


def kineo(*arguments, capsys):
    """(exit code, stdout, stderr without progress) of the command, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["data", *map(str, arguments)])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "sources/s" not in line and "shards/s" not in line]
    return ended.value.code or 0, out, "\n".join(lines)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    frames = np.full((30, 48, 64, 3), 90, np.uint8)
    for index, frame in enumerate(frames):
        frame[10:30, index : index + 20] = (220, 40, 40)
    write_mp4(folder / "a.mp4", frames, 10)
    (folder / "a.txt").write_text("a red square moving right")
    return folder


@pytest.mark.parametrize("command", ["", "synth", "run", "decide", "report", "verify", "plan"])
def test_help_has_examples(command, capsys):
    code, out, _ = kineo(*command.split(), "--help", capsys=capsys)
    assert code == 0
    assert "Example" in out


def test_help_loads_nothing_heavy():
    script = "import sys; import kineograph.cli.data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"torch", "ray", "av", "numpy", "pyarrow", "pydantic"} & loaded


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "demo", "--input", "{tmp}/nowhere"], "input {tmp}/nowhere does not exist"),
        (["run", "demo", "--input", "{tmp}/empty"], "no media found under {tmp}/empty"),
        (["run", "demo"], "no input: give --input DIR"),
        (["run", "dmeo", "--input", "{tmp}/raw"], "no recipe 'dmeo'"),
        (
            ["run", "demo", "--input", "{tmp}/raw", "--set", "filters.moton.min=1"],
            "did you mean 'filters.motion'?",
        ),
        (["run", "demo", "--input", "{tmp}/raw", "--set", "buckets.sizes=[9x9]"], "256x256x16"),
        (["run", "demo", "--input", "{tmp}/raw", "--out", "{tmp}/raw"], "exists and is no curation run"),
        (["decide", "{tmp}/raw"], "is no curation run"),
        (["report", "{tmp}/raw"], "has no ledger"),
        (["plan", "{tmp}/raw"], "is no curation run"),
        (["verify", "{tmp}/raw"], "is no curation run"),
    ],
)
def test_what_was_asked_wrongly_is_one_line_and_exit_2(raw, tmp_path, capsys, arguments, line):
    (tmp_path / "empty").mkdir()
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if "--out" not in filled and filled[0] == "run":
        filled += ["--out", str(tmp_path / "run")]
    code, out, err = kineo(*filled, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 0
    assert line.replace("{tmp}", str(tmp_path)) in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_from_raw_files_to_a_verified_dataset(raw, tmp_path, capsys):
    run = tmp_path / "run"
    code, out, _ = kineo("run", "demo", "--input", raw, "--out", run, "--json", capsys=capsys)
    facts = json.loads(out)
    assert (code, facts["totals"]["clips_kept"], facts["run"]) == (0, 2, str(run))
    code, out, _ = kineo("verify", run, "--json", capsys=capsys)
    assert (code, json.loads(out)["damaged"]) == (0, [])
    code, out, _ = kineo("plan", run, "--json", capsys=capsys)
    assert json.loads(out)["buckets"][0]["clips"] == 2
    code, out, _ = kineo("plan", run, capsys=capsys)
    assert "100.0%" in out
    code, out, _ = kineo("report", run, capsys=capsys)
    assert out.strip() == str(run / "report.html")
    code, out, _ = kineo("decide", run, "--set", "filters.motion.max=10", "--json", capsys=capsys)
    assert json.loads(out)["digest"] == facts["digest"]

    (shard,) = (run / "shards").rglob("*.parquet")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, out, _ = kineo("verify", run, capsys=capsys)
    assert code == 1
    assert shard.name in out
    shard.unlink()
    code, out, _ = kineo("decide", run, "--json", capsys=capsys)
    assert json.loads(out)["digest"] == facts["digest"]

    code, _, err = kineo("decide", run, "--set", "filters.motion.min=9", capsys=capsys)
    assert code == 2
    assert "nothing was kept: 1 source; 2 clips, 2 rejected (2 motion_low)" in err
    assert "report.html" in err


@pytest.mark.slow
def test_only_bad_files_are_one_line_and_a_ledger(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "list.mp4").write_text("#EXTM3U\n#EXTINF:9,\n/etc/hostname\n")
    (tmp_path / "raw" / "zero.mp4").touch()
    os.symlink("/nowhere", tmp_path / "raw" / "gone.mp4")
    code, _, err = kineo("run", "demo", "--input", tmp_path / "raw", "--out", tmp_path / "run", capsys=capsys)
    assert code == 2
    assert "nothing was kept: 3 sources, 3 rejected (2 not_media, 1 unreadable); see" in err
    assert (tmp_path / "run" / "sources" / "part-00000.parquet").is_file()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_exit_1(raw, tmp_path):
    run = tmp_path / "small"
    run.mkdir()
    for number in range(20):
        shutil.copy(raw / "a.mp4", raw / f"b{number}.mp4")
        with open(raw / f"b{number}.mp4", "ab") as file:
            file.write(b"\0\0\0\x08free" + bytes([number]))  # other bytes, the same video
    command = f"mount -t tmpfs -o size=40k tmpfs {run} && "
    command += f"exec {sys.executable} -m kineograph.cli.main data run demo --input {raw} --out {run}"
    inside = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        command,
    ]
    if subprocess.run([*inside[:4], "true"], check=False, capture_output=True).returncode:
        inside = inside[:1] + inside[3:]  # no user namespaces: root may mount without
        if subprocess.run([*inside[:2], "true"], check=False, capture_output=True).returncode:
            pytest.skip("neither root nor user namespaces here; test_run.py fills a disk in a worker by a limit")
    done = subprocess.run(inside, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"kineo: the disk is full at {run}")
    assert "Traceback" not in done.stderr
