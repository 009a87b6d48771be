"""Training from stored latents: the loss is that of the videos, and the checkpoint has the dataset's autoencoder."""

import json
import math
import shutil

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from kineograph.config import load_recipe
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.errors import UserError
from kineograph.models.stdit import STDiT
from kineograph.models.vae import WEIGHTS, fingerprint, load_autoencoder
from kineograph.store.checkpoints import checkpoint_folder
from kineograph.store.loader import ClipLoader
from kineograph.store.manifest import AUTOENCODER_FOLDER, Manifest
from pipelines.train.config import TrainConfig
from pipelines.train.objective import slot_losses
from pipelines.train.pipeline import train
from pipelines.train.preflight import preflight, preflight_text
from pipelines.train.setup import load_vae, model_shape, open_dataset, take_autoencoder

STEPS = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ray_of_two():
    """One Ray for this file."""
    import ray

    from kineograph.ray_session import start_ray

    mine = not ray.is_initialized()
    start_ray(2)
    yield
    if mine:
        ray.shutdown()


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
    return load_recipe(
        recipe,
        TrainConfig,
        [f"steps={STEPS}", "optimizer.warmup_steps=1", "workers.count=1", "samples.prompts=[a red circle]"],
    )


@pytest.fixture(scope="module")
def trained(alone, config, ray_of_two, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "train"
    train(config, alone, run)
    return run


def losses(config, data, vae):
    """Loss of every clip of an epoch, in the order of the plan, of a model with random weights."""
    dataset = open_dataset(config, data)
    loader = ClipLoader(dataset.reader, cache_bytes=0, latents=dataset.from_latents)
    torch.manual_seed(0)
    model = STDiT(model_shape(config, dataset.manifest))
    for parameter in model.parameters():  # a fresh model says zero whatever it is given
        torch.nn.init.normal_(parameter, std=0.05)
    found = []
    for plan in (dataset.plan.step(s) for s in range(dataset.plan.cycle)):
        batch = loader.batch([slot.clip for slot in plan.slots])
        with torch.no_grad():
            found.append(slot_losses(model, batch, batch.latents(vae), plan.slots, config))
    return torch.cat(found)


def test_the_loss_from_latents_is_that_from_videos(alone, both, config, tmp_path):
    videos = shutil.copytree(both, tmp_path / "videos")
    Manifest.load(videos).model_copy(update={"autoencoder": None}).save(videos)  # the same clips in the same places
    vae = load_autoencoder(both / AUTOENCODER_FOLDER)
    assert not open_dataset(config, videos).from_latents
    torch.testing.assert_close(losses(config, alone, None), losses(config, videos, vae), atol=1e-4, rtol=0)


def test_it_trains_and_the_checkpoint_has_the_autoencoder_of_the_dataset(trained, alone):
    folder = checkpoint_folder(trained, STEPS)
    ours, theirs = load_file(folder / "vae.safetensors"), load_file(alone / AUTOENCODER_FOLDER / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_checkpoint_generates(trained, alone):
    generator = TextToVideo.load(trained)
    assert fingerprint(generator.vae) == fingerprint(load_autoencoder(alone / AUTOENCODER_FOLDER))
    assert generator.generate(["a red circle"], [0], steps=1).shape == (1, 9, 32, 32, 3)


def test_the_held_out_clips_are_measured_too(trained):
    client = MlflowClient(tracking_uri=f"sqlite:///{trained.parent}/mlflow.db")
    run_id = json.loads((trained / "train.json").read_text())["mlflow"]["run_id"]
    assert math.isfinite(client.get_run(run_id).data.metrics["validation_loss"])


def test_the_plan_says_what_is_read(dataset, both, alone, config):
    said = [preflight(config, open_dataset(config, data))["reads"] for data in (dataset, both, alone)]
    assert said[0] == "videos"
    assert said[1] == said[2]
    assert said[1].startswith("latents (float32, autoencoder ")
    assert f"read as {said[1]}" in preflight_text(preflight(config, open_dataset(config, alone)))


def other(config, **vae):
    return config.model_copy(update={"vae": config.vae.model_copy(update=vae)})


@pytest.mark.parametrize("vae", [{"channels": 4}, {"stride": 8}, {"temporal_stride": 2}])
def test_latents_of_another_shape_are_refused_in_one_line(alone, config, vae):
    with pytest.raises(UserError, match=r"patch_pca with 8 channels and strides \(4, 4, 4\), and no videos") as error:
        open_dataset(other(config, **vae), alone)
    assert "\n" not in str(error.value)


def test_where_there_are_videos_too_they_are_read_instead(both, config):
    dataset = open_dataset(other(config, channels=4), both)
    assert not dataset.from_latents
    assert "videos: its latents are of 8 channels" in preflight(other(config, channels=4), dataset)["reads"]


def test_an_autoencoder_that_was_changed_is_refused(alone, config, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    raw = (run / AUTOENCODER_FOLDER / WEIGHTS).read_bytes()
    (run / AUTOENCODER_FOLDER / WEIGHTS).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the one that made the latents: run 'kineo data decide"):
        take_autoencoder(tmp_path, open_dataset(config, run))


def test_the_videos_of_latents_alone_cannot_be_read(alone, config):
    with pytest.raises(UserError, match="holds latents and no videos"):
        ClipLoader(open_dataset(config, alone).reader, cache_bytes=0)


def test_what_the_workers_load_is_what_was_taken(trained, alone, config):
    assert fingerprint(load_vae(trained, config)) == open_dataset(config, alone).manifest.autoencoder.digest
