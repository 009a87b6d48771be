"""`kineo train` for real: two workers, and what it leaves for people to look at."""

import json
import shutil

import av
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from kineograph.cli.main import main
from kineograph.store.checkpoints import checkpoint_folder, find_fault, list_checkpoints, read_config
from kineograph.store.manifest import Manifest
from pipelines.train.registry import load_train_recipe, open_kind
from tests.pipelines.train.conftest import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def kineo(capsys, *arguments):
    """(exit code, stdout, stderr) of a `kineo` command in this process."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def snapshot(run):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}


class TestUndisturbed:
    def test_it_ends_well(self, undisturbed):
        assert undisturbed.code == 0, undisturbed.log

    def test_every_step_is_in_the_metrics(self, undisturbed):
        assert [row["step"] for row in metrics(undisturbed.run)] == list(range(1, STEPS + 1))

    def test_the_last_checkpoint_is_whole(self, undisturbed):
        assert find_fault(checkpoint_folder(undisturbed.run, STEPS)) == ""

    def test_stdout_is_one_json_object(self, undisturbed):
        facts = json.loads(undisturbed.out)
        assert facts["checkpoint"] == str(checkpoint_folder(undisturbed.run, STEPS))

    def test_the_console_is_ours_alone(self, undisturbed):
        known = (
            "bucket",
            "32x32x",
            "clips to train on",
            "M parameters",
            "a step (guessed from FLOPs)",
            "autoencoder fitted",
            "starting 2 workers",
            "training",
        )
        strange = [line for line in undisturbed.log.splitlines() if not any(word in line for word in known)]
        assert strange == []

    def test_the_weights_moved(self, undisturbed):
        first, last = (load_file(checkpoint_folder(undisturbed.run, s) / "model.safetensors") for s in (25, STEPS))
        still = [n for n, tensor in last.items() if "text_norm" not in n and torch.equal(tensor, first[n])]
        assert still == []

    def test_checkpoints_share_the_bytes_of_their_autoencoder(self, undisturbed):
        files = [folder / "vae" / "model.safetensors" for folder in list_checkpoints(undisturbed.run)]
        assert {file.stat().st_ino for file in files} == {(undisturbed.run / "vae/model.safetensors").stat().st_ino}

    def test_the_checkpoint_names_its_dataset(self, undisturbed, dataset):
        assert (
            read_config(checkpoint_folder(undisturbed.run, STEPS))["manifest_digest"] == Manifest.load(dataset).digest
        )

    def test_once_more_says_it_is_done_and_changes_nothing(self, undisturbed, recipe, dataset, capsys):
        before = snapshot(undisturbed.run)
        code, _, log = kineo(capsys, "train", recipe, "--data", dataset, "--out", undisturbed.run)
        assert (code, f"has its {STEPS} steps already" in log, snapshot(undisturbed.run) == before) == (0, True, True)


class TestMLflow:
    @pytest.fixture
    def client(self, undisturbed):
        return MlflowClient(tracking_uri=f"sqlite:///{undisturbed.run.parent}/mlflow.db")

    @pytest.fixture
    def run_id(self, undisturbed):
        return json.loads((undisturbed.run / "train.json").read_text())["mlflow"]["run_id"]

    def test_it_has_the_loss_of_every_step(self, client, run_id, undisturbed):
        history = {m.step: m.value for m in client.get_metric_history(run_id, "loss")}
        assert history == {row["step"]: row["loss"] for row in metrics(undisturbed.run)}

    def test_it_has_the_validation_loss(self, client, run_id):
        assert [m.step for m in client.get_metric_history(run_id, "validation_loss")] == [50, 100]

    def test_it_has_the_digest_of_the_dataset(self, client, run_id, dataset):
        (data,) = client.get_run(run_id).inputs.dataset_inputs
        assert {t.key: t.value for t in data.tags}["digest"] == Manifest.load(dataset).digest

    def test_it_has_the_recipe(self, client, run_id):
        assert client.get_run(run_id).data.params["model.width"] == "32"

    def test_it_has_a_video_of_every_prompt(self, client, run_id):
        videos = [f.path for f in client.list_artifacts(run_id, f"samples/step-{STEPS:08d}")]
        assert videos == [f"samples/step-{STEPS:08d}/0{n}.mp4" for n in (0, 1)]

    def test_the_run_is_finished(self, client, run_id):
        assert client.get_run(run_id).info.status == "FINISHED"


class TestRefusals:
    """Exit code 2 and one line on stderr, before anything starts."""

    def refused(self, capsys, *arguments):
        code, _, log = kineo(capsys, "train", *arguments)
        assert code == 2
        (line,) = log.splitlines()
        return line

    def test_another_width(self, undisturbed, recipe, dataset, capsys):
        options = ["--data", dataset, "--out", undisturbed.run, "--set", "model.width=64"]
        line = self.refused(capsys, recipe, *options)
        assert f"cannot go on from step {STEPS}: model.width is 64, it was 32" in line

    def test_another_dataset(self, undisturbed, recipe, dataset, tmp_path, capsys):
        shutil.copytree(dataset, tmp_path / "data")
        manifest = Manifest.load(dataset)
        manifest.model_copy(update={"shards": manifest.shards[:1]}).save(tmp_path / "data")
        line = self.refused(capsys, recipe, "--data", tmp_path / "data", "--out", undisturbed.run)
        assert "the dataset is " in line

    def test_a_misspelt_key(self, recipe, dataset, tmp_path, capsys):
        options = ["--data", dataset, "--out", tmp_path / "train", "--set", "optimizer.leaning_rate=1"]
        assert "unknown key 'optimizer.leaning_rate'" in self.refused(capsys, recipe, *options)

    def test_a_dataset_that_is_not_there(self, recipe, tmp_path, capsys):
        line = self.refused(capsys, recipe, "--data", tmp_path / "none", "--out", tmp_path / "train")
        assert "is no curation run: make one with 'kineo data run" in line

    def test_no_dataset(self, recipe, tmp_path, capsys):
        assert "give --data RUN" in self.refused(capsys, recipe, "--out", tmp_path / "train")

    def test_a_directory_of_something_else(self, recipe, dataset, tmp_path, capsys):
        (tmp_path / "thesis.txt").write_text("years of work")
        line = self.refused(capsys, recipe, "--data", dataset, "--out", tmp_path)
        assert "holds something else than a training run" in line

    def test_a_file_for_a_directory(self, recipe, dataset, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert "is a file" in self.refused(capsys, recipe, "--data", dataset, "--out", tmp_path / "file")

    def test_more_held_out_than_there_is(self, recipe, dataset, tmp_path, capsys):
        options = ["--data", dataset, "--out", tmp_path / "train", "--set", "data.validation_share=0.9999"]
        assert "no clip to train on" in self.refused(capsys, recipe, *options)

    def test_nothing_is_left_of_a_refused_start(self, recipe, tmp_path, capsys):
        self.refused(capsys, recipe, "--data", tmp_path / "none", "--out", tmp_path / "train")
        assert not (tmp_path / "train").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--out", "x.avi"], "ends in .mp4"),
            (["--out", "x.mp4", "--fps", "-1"], "above zero"),
            (["--out", "x.mp4", "--device", "abacus"], "--device"),
        ],
    )
    def test_generating_what_cannot_be_made(self, undisturbed, tmp_path, monkeypatch, capsys, options, message):
        monkeypatch.chdir(tmp_path)
        code, _, log = kineo(capsys, "generate", "--checkpoint", undisturbed.run, "--prompt", "a cat", *options)
        assert (code, len(log.splitlines()), message in log, list(tmp_path.iterdir())) == (2, 1, True, [])


class TestDryRun:
    def test_it_tells_the_plan_as_json(self, recipe, dataset, capsys):
        _, out, _ = kineo(capsys, "train", recipe, "--data", dataset, "--dry-run", "--json")
        facts = json.loads(out)
        assert facts["training_clips"] == sum(row["clips"] for row in facts["buckets"])


def test_images_alone_are_shown_for_a_second(dataset, recipe, tmp_path):
    """Sample videos of a dataset without videos need a frame rate, and images have none."""
    shutil.copytree(dataset, tmp_path / "data")
    manifest = Manifest.load(dataset)
    images = tuple(shard for shard in manifest.shards if shard.bucket.endswith("x1"))
    manifest.model_copy(update={"shards": images}).save(tmp_path / "data")
    kind = open_kind(load_train_recipe(recipe), tmp_path / "data", tmp_path / "train")
    assert kind.describe()["fps"] == 1.0


class TestGenerate:
    @pytest.fixture
    def made(self, undisturbed, tmp_path, capsys):
        out = tmp_path / "red circle.mp4"
        options = ["--prompt", "a red circle", "--out", out, "--size", "24x40", "--seconds", "1.6", "--steps", "2"]
        code, _, log = kineo(capsys, "generate", "--checkpoint", undisturbed.run, *options)
        assert code == 0, log
        return out

    def test_it_writes_h264_of_the_frames_and_size_asked_for(self, made):
        with av.open(str(made)) as container:
            stream = container.streams.video[0]
            frames = [(frame.height, frame.width) for frame in container.decode(stream)]
            assert (stream.codec_context.name, frames) == ("h264", [(24, 40)] * 13)

    def test_it_writes_a_contact_sheet(self, made):
        with Image.open(made.with_suffix(".png")) as sheet:
            assert sheet.format == "PNG"

    def test_every_checkpoint_can_generate(self, undisturbed, tmp_path, capsys):
        folder, out = list_checkpoints(undisturbed.run)[0], tmp_path / "a.mp4"
        code, _, log = kineo(capsys, "generate", "--checkpoint", folder, "--prompt", "", "--out", out, "--steps", 1)
        assert (code, out.is_file()) == (0, True), log
