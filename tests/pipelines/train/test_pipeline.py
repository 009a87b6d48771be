"""What a person sees of a training run, whatever its kind."""

import json

import pytest

from kineograph.cli.main import main
from kineograph.cli.recipes import recipe_path
from kineograph.errors import UserError
from pipelines.train.pipeline import plan, progress_note
from pipelines.train.preflight import preflight_text
from pipelines.train.registry import load_train_recipe

RATES = {"step": 3, "clips_per_s": 12.4, "mfu": 0.31, "data_wait_share": 0.25, "skipped_steps": 0}


def test_the_progress_line_shows_what_matters_for_the_kind():
    metrics = {**RATES, "loss": 0.12345, "psnr": 27.123, "kl": 3.0, "validation_psnr": 26.5}
    note = progress_note(("loss", "psnr", "validation_psnr"), metrics)
    assert note == "loss 0.1235  psnr 27.12  validation_psnr 26.5  12 clips/s  MFU 31%  wait 25%"


def test_what_was_not_measured_yet_is_left_out():
    assert progress_note(("loss", "validation_psnr"), {**RATES, "loss": 1.0}) == "loss 1  12 clips/s  MFU 31%  wait 25%"


def test_skipped_steps_are_shown():
    assert progress_note((), {**RATES, "skipped_steps": 2}).endswith("skipped 2")


def test_more_workers_than_clips_of_a_step_are_refused(dataset, tmp_path):
    config = load_train_recipe(recipe_path("train", "demo"), ["workers.count=40", "data.validation_share=0.2"])
    with pytest.raises(UserError, match=r"has 32 clips for 40 workers: raise batch\.packs"):
        plan(config, dataset, tmp_path / "run")


def test_the_deal_of_steps_is_simulated_for_any_number_of_ranks(dataset, tmp_path):
    config = load_train_recipe(recipe_path("train", "demo"), ["data.validation_share=0.2"])
    balance = plan(config, dataset, tmp_path / "run", worlds=(2, 8), steps=20)["balance"]
    assert [row["ranks"] for row in balance] == [2, 8]
    assert all(row["imbalance"]["mean"] >= 0 for row in balance)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("demo", " GiB of state and about 0."),
        ("vae", " GiB of state besides activations, which costs.source=measured would measure"),
    ],
)
def test_the_memory_of_a_worker_is_told_as_far_as_it_is_known(dataset, tmp_path, recipe, said):
    facts = plan(
        load_train_recipe(recipe_path("train", recipe), ["data.validation_share=0.2"]), dataset, tmp_path / "run"
    )
    assert said in preflight_text(facts)
    assert (facts["activations_gib"] is None, facts["activations_measured"]) == (recipe == "vae", False)


def test_the_plan_of_every_shipped_recipe_can_be_seen(dataset, tmp_path, capsys):
    for recipe in ("demo", "vae", "classifier-shape", "classifier-direction"):
        arguments = ["train", recipe, "--data", dataset, "--out", tmp_path / "run", "--dry-run", "--json"]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in [*arguments, "--set", "data.validation_share=0.2"]])
        assert end.value.code == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["kind"] in ("diffusion", "vae", "classifier")
        assert facts["parameters"] > 0
    assert not (tmp_path / "run").exists()
