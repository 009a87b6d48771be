"""A whole evaluation: what it writes, what MLflow gets, when it fails, and that it trusts no prompt."""

import json

import av
import pytest
from click.testing import CliRunner

from kineograph.cli.eval import evaluate as command
from kineograph.cli.recipes import read_recipe
from kineograph.errors import GateError, RecipeError, UserError
from kineograph.store.checkpoints import CONFIG, seal
from kineograph.tracking import Tracker
from pipelines.eval.config import EvalConfig
from pipelines.eval.pipeline import evaluate

SMALL = {"videos": 6, "batch_size": 4, "oracle_scenes": 24, "report": {"videos": 2, "rows": 4}}
HOSTILE = "<script>alert('red')</script> & \"quotes\" {{ 7 * 7 }}"


def small(**more):
    return EvalConfig.model_validate({**SMALL, **more})


def by_name(metrics):
    return {score["name"]: score for score in metrics["metrics"]}


def change(checkpoint, **more):
    config = json.loads((checkpoint / CONFIG).read_text())
    (checkpoint / CONFIG).write_text(json.dumps({**config, **more}))
    seal(checkpoint)


def test_a_real_checkpoint_is_sampled_and_graded(checkpoint, data, tmp_path, capsys):
    facts = evaluate(small(), tmp_path / "train", data)
    out = tmp_path / "train" / "eval" / "step-00000300"
    metrics = json.loads((out / "metrics.json").read_text())
    assert facts["out"] == str(out)
    assert {key: facts[key] for key in metrics} == metrics
    scores = by_name(metrics)
    assert (scores["colour_accuracy"]["n"], scores["oracle_colour_accuracy"]["n"]) == (6, 24)
    assert scores["oracle_direction_accuracy"]["value"] >= 0.9
    # The model predicts zero: its loss is the mean square of noise minus data, of unit variance or so each.
    assert 1.0 < scores["validation_loss"]["value"] < 4.0
    assert 4 <= scores["validation_loss"]["n"] <= 20
    assert list(metrics["validation_loss_by_timestep"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    assert metrics["checkpoint"]["step"] == 300
    assert metrics["digests"]["data"] == metrics["digests"]["training_data"]
    assert all(len(digest) == 64 for digest in metrics["digests"].values())
    assert metrics["sampling"] == {"bucket": "24x40x9", "fps": 4.0, "steps": 2, "guidance_scale": 3.0}
    assert len({(s["prompt"], s["seed"]) for s in metrics["samples"]}) == 6
    assert (out / "_SUCCESS").is_file()
    assert (out / "recipe.yaml").is_file()
    assert len(list((out / "sheets").glob("*.png"))) == 2
    with av.open(str(out / metrics["samples"][1]["video"])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 9
    assert "no MLflow run" in capsys.readouterr().err


def test_the_same_recipe_gives_the_same_scores(checkpoint, tmp_path):
    first = evaluate(small(), checkpoint, out=tmp_path / "one")
    again = evaluate(small(batch_size=6), checkpoint, out=tmp_path / "two")
    assert first["metrics"] == again["metrics"]
    assert first["samples"] == again["samples"]


def test_who_obeys_passes_and_who_does_not_fails_after_all_is_written(checkpoint, painter, tmp_path):
    gate = {"colour_accuracy": 0.9, "direction_accuracy": 0.5, "oracle_colour_accuracy": 0.9}
    facts = evaluate(small(videos=24, gate=gate), checkpoint, out=tmp_path / "good")
    assert facts["gate"]["passed"]
    assert by_name(facts)["direction_accuracy"]["value"] >= 0.9
    assert "no validation loss: no --data was given" in facts["notes"]
    with pytest.raises(GateError, match=r"validation_loss was not measured") as error:
        evaluate(small(gate={**gate, "validation_loss": 0.1}), checkpoint, out=tmp_path / "bad")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1
    assert (tmp_path / "bad" / "_SUCCESS").is_file()
    assert "The gate is missed." in (tmp_path / "bad" / "report.html").read_text()


def test_the_report_escapes_prompts_and_needs_nothing_beside_it(checkpoint, painter, tmp_path):
    config = small(prompts=["a red circle moving left", HOSTILE], report={"videos": 2, "rows": 4})
    facts = evaluate(config, checkpoint, out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")
    assert by_name(facts)["colour_accuracy"]["n"] == 3
    assert "the oracle knows nothing of 3 of the 6 prompts" in facts["notes"]
    assert facts["samples"][1]["prompt"] == HOSTILE
    assert facts["samples"][1]["colour"] is None


def test_prompts_of_no_known_world_get_flicker_alone(checkpoint, painter, tmp_path):
    facts = evaluate(small(prompts=["a dog"]), checkpoint, out=tmp_path / "out")
    assert set(by_name(facts)) == {"flicker"}


def test_mlflow_has_the_scores_at_the_step_and_the_files(checkpoint, painter, tmp_path):
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with Tracker.start(uri, "tests", "train", run_dir=tmp_path / "train") as tracker:
        tracker.log_metrics({"loss": 1.0}, 300)
    change(checkpoint, mlflow={"uri": uri, "run_id": tracker.run_id})
    facts = evaluate(small(gate={"colour_accuracy": 0.5}), checkpoint)
    assert facts["mlflow"] == {"attached": True, "uri": uri, "run_id": tracker.run_id, "step": 300}
    client = MlflowClient(tracking_uri=uri)
    for name, score in by_name(facts).items():
        (point,) = client.get_metric_history(tracker.run_id, f"eval/{name}")
        assert (point.step, point.value) == (300, score["value"])
    folder = "eval/step-00000300"
    files = {f.path.removeprefix(f"{folder}/") for f in client.list_artifacts(tracker.run_id, folder)}
    assert files == {"report.html", "metrics.json", "sheets", "videos"}
    assert len(client.list_artifacts(tracker.run_id, f"{folder}/videos")) == 2
    tags = client.get_run(tracker.run_id).data.tags
    assert (tags["eval.gate"], tags["eval.digest.recipe"]) == ("passed", facts["digests"]["recipe"])


def test_a_lost_mlflow_costs_one_line_and_no_score(checkpoint, painter, tmp_path, capsys):
    change(checkpoint, mlflow={"uri": f"sqlite:///{tmp_path}/lost/mlflow.db", "run_id": "0" * 32})
    facts = evaluate(small(), checkpoint, out=tmp_path / "out")
    assert facts["mlflow"]["attached"] is False
    assert "there is no store" in capsys.readouterr().err
    assert (tmp_path / "out" / "_SUCCESS").is_file()


def test_what_is_asked_wrongly_is_refused_before_sampling(checkpoint, data, tmp_path):
    with pytest.raises(UserError, match="is no curation run"):
        evaluate(small(), checkpoint, tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(small(), tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        evaluate(small(), checkpoint, out=tmp_path / "file")
    change(checkpoint, text_encoder={"name": "t5", "width": 384, "max_tokens": 64})
    with pytest.raises(UserError, match=r"encoded by minilm"):
        evaluate(small(), checkpoint, data)
    assert not (tmp_path / "train" / "eval").exists()


def test_recipes_are_checked():
    demo = read_recipe("eval", "demo", EvalConfig)
    assert (demo.videos, demo.gate.colour_accuracy, demo.gate.direction_accuracy) == (144, 0.9, 0.5)
    with pytest.raises(RecipeError, match=r"did you mean 'gate.colour_accuracy'"):
        read_recipe("eval", "demo", EvalConfig, ["gate.color_accuracy=0.5"])
    for wrong in ("bucket=32x32", "prompts=['']", "validation.timesteps=[0]", "videos=0"):
        with pytest.raises(RecipeError):
            read_recipe("eval", "demo", EvalConfig, [wrong])


def test_the_command_prints_its_table_or_its_json_before_it_fails(checkpoint, painter, tmp_path):
    asked = ["demo", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    for key, value in (("videos", 4), ("oracle_scenes", 8), ("gate.shape_accuracy", 0.1)):
        asked += ["--set", f"{key}={value}"]
    for key in ("colour_accuracy", "direction_accuracy", "shape_accuracy"):
        asked += ["--set", f"gate.oracle_{key}=0.5"]
    text = CliRunner().invoke(command, asked, catch_exceptions=False)
    assert "colour_accuracy" in text.stdout
    assert "0.167" in text.stdout
    assert "gate: passed" in text.stdout
    short = CliRunner().invoke(command, [*asked, "--json", "--set", "gate.validation_loss=0.1"])
    assert isinstance(short.exception, GateError)
    assert json.loads(short.stdout)["gate"]["passed"] is False
