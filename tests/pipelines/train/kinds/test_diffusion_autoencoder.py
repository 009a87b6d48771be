"""Training from stored latents: the loss is that of the videos, and the checkpoint has the dataset's autoencoder."""

import json
import math
import shutil

import pytest
import torch
from mlflow.tracking import MlflowClient

from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.errors import UserError
from kineograph.models.vae import WEIGHTS, PatchPCA, PatchPCAConfig, fingerprint, load_autoencoder, save_autoencoder
from kineograph.store.checkpoints import checkpoint_folder
from kineograph.store.manifest import AUTOENCODER_FOLDER, Manifest
from pipelines.train.kinds.diffusion.config import FolderVAE
from pipelines.train.pipeline import train
from pipelines.train.preflight import preflight, preflight_text
from pipelines.train.registry import load_train_recipe, open_kind
from tests.pipelines.train.steps import epoch
from tests.pipelines.train.steps import losses as losses_of_step

STEPS = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def both(dataset, ray_of_two, tmp_path_factory):
    """The dataset with latents beside its videos."""
    from pipelines.data.pipeline import decide

    run = tmp_path_factory.mktemp("both") / "run"
    shutil.copytree(dataset, run)
    decide(run, ["encode.latents.channels=8", "encode.latents.dtype=float32"])
    return run


@pytest.fixture(scope="module")
def alone(both, tmp_path_factory):
    """The dataset with latents and no videos."""
    from pipelines.data.pipeline import decide

    run = tmp_path_factory.mktemp("alone") / "run"
    shutil.copytree(both, run)
    decide(run, ["encode.video=false"])
    return run


@pytest.fixture(scope="module")
def config(recipe):
    return load_train_recipe(
        recipe,
        [f"steps={STEPS}", "optimizer.warmup_steps=1", "workers.count=1", "samples.prompts=[a red circle]"],
    )


@pytest.fixture(scope="module")
def trained(alone, config, ray_of_two, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "train"
    train(config, alone, run)
    return run


def opened(config, data, run, on_rank=False):
    kind = open_kind(config, data, run, on_rank)
    if on_rank:
        kind.place(torch.device("cpu"))
    return kind


def losses(config, data, run):
    """Loss of every clip of an epoch, in the order of the plan, of a model with random weights."""
    opened(config, data, run).prepare()
    kind = opened(config, data, run, on_rank=True)
    torch.manual_seed(0)
    model = kind.build()
    for parameter in model.parameters():  # a fresh model says zero whatever it is given
        torch.nn.init.normal_(parameter, std=0.05)
    found = []
    for step in epoch(kind):
        with torch.no_grad():
            found.append(losses_of_step(kind, model, step).total)
    return torch.cat(found)


def from_folder(config, folder):
    return config.model_copy(update={"vae": FolderVAE(kind="folder", path=str(folder))})


def test_the_loss_from_latents_is_that_from_videos(alone, both, config, tmp_path):
    videos = shutil.copytree(both, tmp_path / "videos")
    Manifest.load(videos).model_copy(update={"autoencoder": None}).save(videos)  # the same clips in the same places
    encoding = from_folder(config, both / AUTOENCODER_FOLDER)
    assert not opened(encoding, videos, tmp_path).autoencoder.reads_latents
    found, expected = losses(config, alone, tmp_path / "alone"), losses(encoding, videos, tmp_path / "encoding")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_it_trains_and_the_checkpoint_has_the_autoencoder_of_the_dataset(trained, alone):
    ours, theirs = (load_autoencoder(f / AUTOENCODER_FOLDER) for f in (checkpoint_folder(trained, STEPS), alone))
    assert fingerprint(ours) == fingerprint(theirs)


def test_the_checkpoint_generates(trained):
    assert TextToVideo.load(trained).generate(["a red circle"], [0], steps=1).shape == (1, 9, 32, 32, 3)


def test_the_held_out_clips_are_measured_too(trained):
    client = MlflowClient(tracking_uri=f"sqlite:///{trained.parent}/mlflow.db")
    state = json.loads((trained / "train.json").read_text())
    logged = client.get_run(state["mlflow"]["run_id"]).data.metrics["validation_loss"]
    assert math.isfinite(logged)
    found = state["validation"]
    assert (found["step"], found["validation_loss"], found["validation_loss_t0.5"]) == (STEPS, logged, logged)


def test_the_plan_says_what_is_read(dataset, both, alone, config, tmp_path):
    said = [preflight(opened(config, data, tmp_path))["reads"] for data in (dataset, both, alone)]
    assert said[0] == "videos"
    assert said[1] == said[2]
    assert said[1].startswith("latents (float32, autoencoder ")
    assert f"read as {said[1]}" in preflight_text(preflight(opened(config, alone, tmp_path)))


def other(config, **vae):
    return config.model_copy(update={"vae": config.vae.model_copy(update=vae)})


@pytest.mark.parametrize("vae", [{"channels": 4}, {"stride": 8}, {"temporal_stride": 2}])
def test_latents_of_another_shape_are_refused_in_one_line(alone, config, vae, tmp_path):
    with pytest.raises(UserError, match=r"patch_pca with 8 channels and strides \(4, 4, 4\), and no videos") as error:
        opened(other(config, **vae), alone, tmp_path).check()
    assert "\n" not in str(error.value)


def test_where_there_are_videos_too_they_are_read_instead(both, config, tmp_path):
    kind = opened(other(config, channels=4), both, tmp_path)
    assert not kind.autoencoder.reads_latents
    assert "videos: its latents are of 8 channels" in preflight(kind)["reads"]


def test_buckets_that_do_not_fit_are_refused_in_one_line(dataset, config, tmp_path):
    with pytest.raises(UserError, match=r"bucket 32x32x. does not fit the autoencoder: sides must be multiples of 5"):
        opened(other(config, stride=5), dataset, tmp_path).check()


def test_an_autoencoder_that_was_changed_is_refused(alone, config, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    raw = (run / AUTOENCODER_FOLDER / WEIGHTS).read_bytes()
    (run / AUTOENCODER_FOLDER / WEIGHTS).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the one that made the latents: run 'kineo data decide"):
        opened(config, run, tmp_path / "train").prepare()


@pytest.fixture
def stranger(tmp_path):
    """The folder of an autoencoder that did not make the dataset's latents."""
    vae = PatchPCA(PatchPCAConfig(channels=8))
    vae.fit([torch.rand(3, 5, 8, 8) for _ in range(4)])
    save_autoencoder(vae, tmp_path / "stranger")
    return tmp_path / "stranger"


class TestFolder:
    """vae: {kind: folder, path: FOLDER}."""

    def test_its_latents_are_read_where_the_dataset_has_them(self, alone, config, tmp_path):
        assert opened(from_folder(config, alone / AUTOENCODER_FOLDER), alone, tmp_path).autoencoder.reads_latents

    def test_without_them_it_encodes_videos(self, both, config, stranger, tmp_path):
        run = tmp_path / "train"
        losses(from_folder(config, stranger), both, run)
        assert fingerprint(load_autoencoder(run / AUTOENCODER_FOLDER)) == fingerprint(load_autoencoder(stranger))

    def test_latents_of_another_one_alone_are_refused(self, alone, config, stranger, tmp_path):
        with pytest.raises(UserError, match=r"the recipe's autoencoder is that of .*stranger"):
            opened(from_folder(config, stranger), alone, tmp_path).check()

    def test_a_folder_that_is_not_there_is_named(self, dataset, config, tmp_path):
        with pytest.raises(UserError, match=r"no autoencoder at .*nowhere"):
            opened(from_folder(config, tmp_path / "nowhere"), dataset, tmp_path).check()

    def test_a_run_does_not_go_on_with_another_one(self, trained, alone, config, stranger):
        from pipelines.train.pipeline import check_resume

        run = shutil.copytree(trained, stranger.parent / "train")
        assert check_resume(opened(from_folder(config, alone / AUTOENCODER_FOLDER), alone, run)) == STEPS
        manifest = Manifest.load(alone)
        data = shutil.copytree(alone, stranger.parent / "data")
        manifest.model_copy(update={"video": True}).save(data)
        with pytest.raises(UserError, match=r"cannot go on from step 2: autoencoder\.digest is "):
            check_resume(opened(from_folder(config, stranger), data, run))
