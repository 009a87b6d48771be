"""What a person sees of a training run, whatever its kind."""

import json

import pytest

from kineograph.cli.main import main
from pipelines.train.pipeline import progress_note

RATES = {"step": 3, "clips_per_s": 12.4, "data_wait_share": 0.25}


def test_the_progress_line_shows_what_matters_for_the_kind():
    metrics = {**RATES, "loss": 0.12345, "psnr": 27.123, "kl": 3.0, "validation_psnr": 26.5}
    note = progress_note(("loss", "psnr", "validation_psnr"), metrics)
    assert note == "loss 0.1235  psnr 27.12  validation_psnr 26.5  12 clips/s  wait 25%"


def test_what_was_not_measured_yet_is_left_out():
    assert progress_note(("loss", "validation_psnr"), {**RATES, "loss": 1.0}) == "loss 1  12 clips/s  wait 25%"


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
