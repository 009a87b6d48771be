"""A run that is stopped anywhere goes on and ends with the dataset of an undisturbed one."""

import os
import resource
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from kineograph.config import dump_yaml
from kineograph.errors import UserError
from pipelines.data import pipeline, state
from pipelines.data.stages import Resources, _OnItem, run_stage

slow = pytest.mark.slow


def _bench():
    """The module of the benchmark, which does more of the same; the folders of tests are no packages."""
    spec = spec_from_file_location("kills", Path(__file__).parents[2] / "bench" / "kills.py")
    module = module_from_spec(spec)
    sys.modules["kills"] = module
    spec.loader.exec_module(module)
    return module


kills = _bench()


def kineo(*arguments, **options):
    command = [sys.executable, "-m", "kineograph.cli.main", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def start(raw, recipe, tmp_path):
    """Starts `kineo data run` on the corpus; what still runs at the end of the test is killed."""
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    started = []

    def begin():
        started.append(kills.Driver(tmp_path, raw, tmp_path / "run"))
        return started[-1]

    yield begin
    for driver in started:
        if driver.running:
            driver.kill()


@slow
@pytest.mark.timeout(600)
def test_kills_of_the_driver_and_of_a_worker_change_nothing(start, finished, tmp_path):
    run = tmp_path / "run"
    complete = {stage: len(kills.files(finished[0], pattern)) for stage, pattern in kills.STAGES.items()}
    complete["scoring"] = 0  # the recipe asks no model
    hit = []
    for point in (kills.Point("analysing", files=1), kills.Point("encoding", files=2), kills.Point("writing")):
        driver, watch = start(), kills.Watch(run, complete)
        if len(hit) == 1:
            assassin = kills.Assassin(driver, watch, ["analysing"], ["worker"])
            assassin.start()
        hit.append(kills.kill_at(point, driver, watch)[0])
        assert not (run / "_SUCCESS").exists()
    assassin.join()
    assert assassin.killed == ["worker while analysing"]
    assert hit[:2] == ["analysing", "encoding"]
    assert hit[2] in ("writing", "closing")
    assert start().finish()["digest"] == finished[1]["digest"]
    assert kills.complaints(run) == []


@slow
def test_the_order_in_which_sources_are_worked_on_changes_nothing(finished, raw, recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    assert kills.shuffled(tmp_path, raw, tmp_path / "run") == finished[1]["digest"]


@slow
def test_a_second_command_on_a_run_is_refused_in_one_line(own_run):
    with state.locked(own_run):
        ended = kineo("decide", own_run)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"kineo: another command is at work on {own_run}: wait for it, or give another --out\n"
    assert (own_run / "_SUCCESS").exists()


def test_a_killed_command_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipelines.data import state\n"
        "with state.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another command is at work"), state.locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with state.locked(tmp_path):
        pass


def test_a_kill_while_the_recipe_was_written_first_leaves_a_directory_that_can_be_used(tmp_path, recipe):
    (tmp_path / ".lock").touch()
    (tmp_path / "recipe.yaml.tmp-0123abcd").write_text("buckets:")
    state.check_run_directory(tmp_path)
    state.open_run(tmp_path, recipe)
    assert sorted(os.listdir(tmp_path)) == [".lock", "recipe.yaml"]


def test_a_folder_with_anything_else_is_no_run(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(UserError, match="is no curation run"):
        state.check_run_directory(tmp_path)


@slow
def test_a_full_disk_while_shards_are_written_is_one_line_and_the_next_command_finishes(own_run, finished):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    kept = kills.files(own_run, *list(kills.STAGES.values())[:-1])
    ended = kineo("decide", own_run, "--set", "shards.rows=64", preexec_fn=little_room)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "the disk is full" in ended.stderr
    assert not (own_run / "_SUCCESS").exists()
    assert kills.files(own_run, *list(kills.STAGES.values())[:-1]) == kept
    assert pipeline.decide(own_run, ["shards.rows=4"])["digest"] == finished[1]["digest"]
    assert kills.complaints(own_run) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 200 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@slow
def test_a_disk_that_fills_up_while_workers_write_is_one_line_and_with_room_the_run_goes_on(
    small_disk, finished, raw, recipe, tmp_path
):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    command = ["run", tmp_path / "recipe.yaml", "--input", raw, "--out", small_disk / "run"]
    ended = kineo(*command)
    assert (ended.returncode, ended.stdout) == (1, "")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("kineo: ")]
    assert len(errors) == 1
    assert "the disk is full" in errors[0]
    before = kills.files(small_disk / "run", "work/analysis/*/*.gz")
    assert before
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert pipeline.curate(recipe, raw, small_disk / "run")["digest"] == finished[1]["digest"]
    assert before.items() <= kills.files(small_disk / "run", "work/analysis/*/*.gz").items()
    assert kills.complaints(small_disk / "run") == []


def test_a_worker_that_does_not_see_the_run_directory_says_so(tmp_path):
    row = _OnItem(lambda item: item, str(tmp_path / "elsewhere"))({"item": "{}"})
    assert row["error"] == "UserError"
    assert "the run directory must be on storage that all nodes share" in row["message"]
    assert not (tmp_path / "elsewhere").exists()


@slow
def test_a_gpu_that_this_machine_does_not_have_is_not_waited_for(ray_of_two, tmp_path):
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="set its device to cpu"):
        run_stage(tmp_path, "scored", "things", [{}], dict, Resources(gpus=1.0), 2)
