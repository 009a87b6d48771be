"""A plan is a pure function of what was asked; its id is the request's digest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kineograph.errors import RecipeError, UserError
from kineograph.jobs.cluster import ClusterConfig, load_cluster
from kineograph.jobs.plan import plan_job
from kineograph.jobs.record import JobRecord, JobState, choose_id

HERE = ClusterConfig(kind="ray")
ELSEWHERE = ClusterConfig(kind="ray", address="http://head.example:8265")
CLUSTERS = Path(__file__).parents[3] / "clusters"


def test_the_command_is_kineos_own_with_absolute_paths(recipe: Path, tmp_path: Path) -> None:
    plan = plan_job("eval", recipe, HERE, {"checkpoint": "c", "data": "d", "out": "o"}, ["a=1"], cwd=tmp_path)
    assert plan.argv("r.yaml") == [
        *(sys.executable, "-m", "kineograph.cli.main", "eval", "r.yaml"),
        *(
            "--checkpoint",
            f"{tmp_path}/c",
            "--data",
            f"{tmp_path}/d",
            "--out",
            f"{tmp_path}/o",
            "--set",
            "a=1",
        ),
    ]


def test_the_same_request_gets_the_same_id(recipe: Path, tmp_path: Path) -> None:
    first = plan_job("data", recipe, HERE, {"input": "raw"}, cwd=tmp_path)
    elsewhere = tmp_path / "copy" / "tiny.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(recipe.read_text())
    assert plan_job("data", elsewhere, HERE, {"input": "raw"}, cwd=tmp_path) == first


def test_every_part_of_the_request_changes_the_id(recipe: Path, tmp_path: Path) -> None:
    def job_id(kind: str = "data", cluster: ClusterConfig = HERE, overrides: tuple[str, ...] = (), **paths: str) -> str:
        return plan_job(kind, recipe, cluster, paths, overrides, cwd=tmp_path).job_id

    ids = {
        job_id(),
        job_id(kind="train"),
        job_id(overrides=("a=1",)),
        job_id(input="raw"),
        job_id(cluster=ClusterConfig(kind="ray", env={"A": "1"})),
    }
    recipe.write_text("name: other\n")
    ids.add(job_id())
    assert len(ids) == 6


def test_a_relative_path_means_nothing_on_another_machine(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"--input raw: http://head\.example:8265 is another machine"):
        plan_job("data", recipe, ELSEWHERE, {"input": "raw", "out": "/shared/out"})


def test_urls_and_absolute_paths_travel_unchanged(recipe: Path) -> None:
    plan = plan_job("data", recipe, ELSEWHERE, {"input": "s3://b/raw", "out": "/shared/out"})
    assert plan.command[0] == "python"
    assert plan.command[-4:] == ("--input", "s3://b/raw", "--out", "/shared/out")


def test_without_out_a_ray_job_writes_into_runs_dir_and_never_into_its_own_folder(recipe: Path, tmp_path: Path) -> None:
    shared = ELSEWHERE.model_copy(update={"runs_dir": "/shared/runs"})
    assert plan_job("train", recipe, shared, {}).command[-2:] == ("--out", "/shared/runs/train")
    assert plan_job("train", recipe, HERE, {}, cwd=tmp_path).command[-1] == f"{tmp_path}/runs/train"
    with pytest.raises(UserError, match="Give --out"):
        plan_job("train", recipe, ELSEWHERE, {})


def test_an_option_of_another_kind_is_an_error(recipe: Path) -> None:
    with pytest.raises(UserError, match="a data job takes no --checkpoint, only --input, --out"):
        plan_job("data", recipe, HERE, {"checkpoint": "c"})


def test_shipped_cluster_files_are_valid() -> None:
    assert load_cluster(CLUSTERS / "local.yaml") == ClusterConfig()
    assert load_cluster(CLUSTERS / "ray-on-prem.yaml") == ClusterConfig(kind="ray")


def test_a_misspelt_key_of_a_cluster_file_names_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("kind: ray\nadress: http://a:1\n")
    with pytest.raises(RecipeError, match="unknown key 'adress'; did you mean 'address'"):
        load_cluster(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("states", "again", "expected"),
    [
        ([], False, ("job", False)),
        (["running"], False, ("job", True)),
        (["succeeded"], False, ("job", True)),
        (["succeeded"], True, ("job-2", False)),
        (["failed"], False, ("job-2", False)),
        (["failed", "stopped"], False, ("job-3", False)),
        (["failed", "succeeded"], False, ("job-2", True)),
        (["stopped", "pending"], True, ("job-2", True)),
    ],
)
def test_what_submitting_again_means(states: list[str], again: bool, expected: tuple[str, bool]) -> None:
    known = {
        name: JobRecord(id=name, state=JobState(state), command="")
        for name, state in zip(["job", "job-2", "job-3"], states, strict=False)
    }
    job_id, found = choose_id("job", known.get, again)
    assert (job_id, found is not None) == expected


def test_the_exit_code_for_a_shell() -> None:
    def code(state: str, exit_code: int | None) -> int:
        return JobRecord(id="x", state=JobState(state), command="", exit_code=exit_code).shell_exit_code

    assert [code("succeeded", 0), code("failed", 7), code("failed", -9), code("failed", None)] == [
        0,
        7,
        137,
        1,
    ]
    assert code("stopped", -15) == 130
