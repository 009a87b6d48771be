"""Published weights, imported, are fine-tuned: start, steps, a checkpoint, and going on from it. One rank, without Ray."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from kineograph.diffusion.published import import_checkpoint
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.errors import RecipeError, UserError
from kineograph.store.checkpoints import checkpoint_folder
from pipelines.train import loop, observer
from pipelines.train.pipeline import check_resume
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.tiny_dataset import LABELS, STILLS, VIDEOS, WORDS, make_dataset

REFERENCE = Path(__file__).parents[3] / "data" / "reference"
FILES = {"opensora-v1": "stdit_v1", "opensora-v3": "stdit_v3", "dit": "dit"}
HEADS = 4
STEPS = 4
RECIPE = {
    "steps": STEPS,
    "batch": {"videos": 3, "images": 3},
    "optimizer": {"lr": 1e-3, "warmup_steps": 1, "schedule": "constant"},
    "data": {"validation_share": 0},
    "checkpoint": {"every": 2, "keep": 10},
}


class Silent:
    """In the place of what tells MLflow."""

    uri, run_id = "nowhere", None

    def log_nothing(self, *_, **__):
        pass

    log_params = log_metrics = log_dataset = log_file = log_image = log_nothing
    log_model = keep_models = set_tags = finish = log_nothing


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    before = dict(os.environ)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    rendezvous = tmp_path_factory.mktemp("ranks") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset for each format."""
    root = tmp_path_factory.mktemp("data")
    words = make_dataset(root / "words", WORDS, (VIDEOS, STILLS))
    return {"opensora-v1": words, "opensora-v3": words, "dit": make_dataset(root / "labels", LABELS, (STILLS,))}


@pytest.fixture(scope="module")
def imported(tmp_path_factory, data):
    """A run of each format with its published weights, tiny."""
    root = tmp_path_factory.mktemp("imported")
    for name, file in FILES.items():
        tensors = load_file(REFERENCE / f"{file}.safetensors")
        weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
        save_file(weights, root / f"{name}.safetensors")
        encoder = None if name == "dit" else WORDS.name
        import_checkpoint(root / f"{name}.safetensors", name, root / name, str(data[name] / "vae"), encoder, HEADS)
    return {name: root / name for name in FILES}


def opened(name, imported, data, run, **parts):
    return open_kind(parse_train_recipe({**RECIPE, "start": str(imported[name]), **parts}), data[name], run)


def train(kind, monkeypatch):
    monkeypatch.setattr(observer.Tracker, "start", lambda *_, **__: Silent())
    loop.train_worker(
        {"config": kind.config.model_dump(mode="json"), "run": str(kind.run), "data": str(kind.reader.run)}
    )


def tensors(run, file, step=STEPS):
    return load_file(checkpoint_folder(run, step) / f"{file}.safetensors")


@pytest.mark.parametrize(
    ("name", "precision"),
    [("opensora-v1", "fp32"), ("opensora-v3", "fp32"), ("opensora-v3", "bf16"), ("dit", "fp32")],
)
def test_it_is_trained_saved_and_goes_on(imported, data, tmp_path, monkeypatch, name, precision):
    kind = opened(name, imported, data, tmp_path / "train", precision=precision)
    kind.check()
    kind.prepare()
    train(kind, monkeypatch)
    trained = {file: tensors(kind.run, file) for file in ("model", "ema", "optimizer")}

    theirs = load_file(next(imported[name].glob("checkpoints/*/ema.safetensors")))
    frozen = [n for n, p in kind.build().named_parameters() if not p.requires_grad]
    assert frozen == (["time_frequencies"] if name == "opensora-v3" else [])
    for file in ("model", "ema"):
        assert trained[file].keys() == theirs.keys()
        assert all(torch.equal(trained[file][n], theirs[n]) for n in frozen)
        assert not torch.equal(trained[file]["to_patches.weight"], theirs["to_patches.weight"])
    buffers = [n for n, _ in kind.build().named_buffers()]
    assert all(torch.equal(trained["ema"][n], theirs[n]) for n in buffers)
    assert not any(n.endswith(f) for n in trained["optimizer"] for f in frozen)

    resumed = opened(name, imported, data, tmp_path / "resumed", precision=precision)
    shutil.copytree(kind.run, resumed.run)
    shutil.rmtree(checkpoint_folder(resumed.run, STEPS))
    assert check_resume(resumed) == 2
    train(resumed, monkeypatch)
    for file, expected in trained.items():
        torch.testing.assert_close(tensors(resumed.run, file), expected, atol=0, rtol=0)


def test_lora_trains_matrices_beside_the_weights_and_goes_on(imported, data, tmp_path, monkeypatch):
    kind = opened("opensora-v3", imported, data, tmp_path / "train", lora={"rank": 2})
    kind.check()
    plain, trained_numbers = kind.count_parameters()
    assert 0 < trained_numbers < plain / 10
    kind.prepare()
    train(kind, monkeypatch)
    trained = {file: tensors(kind.run, file) for file in ("model", "ema", "optimizer", "extra-average")}
    theirs = load_file(next(imported["opensora-v3"].glob("checkpoints/*/ema.safetensors")))
    adapters = {name for name in trained["model"] if ".lora_" in name}
    assert trained["model"].keys() - adapters == theirs.keys()
    assert all(torch.equal(trained["model"][name], tensor) for name, tensor in theirs.items())
    assert {name.split(".", 1)[1] for name in trained["optimizer"] if "." in name} == adapters
    changed = {name for name, tensor in theirs.items() if not torch.equal(trained["ema"][name], tensor)}
    assert changed == {name.replace(".lora_A", "") for name in adapters if ".lora_A" in name}
    TextToVideo.load(kind.run)  # which knows nothing of adapters

    resumed = opened("opensora-v3", imported, data, tmp_path / "resumed", lora={"rank": 2})
    shutil.copytree(kind.run, resumed.run)
    shutil.rmtree(checkpoint_folder(resumed.run, STEPS))
    assert check_resume(resumed) == 2
    train(resumed, monkeypatch)
    for file, expected in trained.items():
        torch.testing.assert_close(tensors(resumed.run, file), expected, atol=0, rtol=0)


def test_another_rank_of_lora_does_not_go_on(imported, data, tmp_path, monkeypatch):
    kind = opened("opensora-v3", imported, data, tmp_path / "train", lora={"rank": 2}, steps=2)
    kind.prepare()
    train(kind, monkeypatch)
    with pytest.raises(UserError, match=r"lora\.rank is 4, it was 2"):
        check_resume(opened("opensora-v3", imported, data, tmp_path / "train", lora={"rank": 4}, steps=4))


def test_what_was_trained_generates(imported, data, tmp_path, monkeypatch):
    kind = opened("dit", imported, data, tmp_path / "train", steps=2)
    kind.prepare()
    train(kind, monkeypatch)
    assert TextToVideo.load(kind.run).generate(["3"], [0], steps=2).shape == (1, 1, 64, 64, 3)


@pytest.mark.parametrize("name", FILES)
def test_it_is_sampled_as_the_checkpoint_is_and_trained_for_that(imported, data, tmp_path, name):
    kind, start = opened(name, imported, data, tmp_path), TextToVideo.load(imported[name])
    assert kind.describe()["sampling"] == start.config["sampling"]
    assert kind.describe()["diffusion"] == start.config["diffusion"]
    conditioning = kind.config.conditioning
    assert (conditioning.factorised, conditioning.tasks.text, conditioning.tasks.image) == (False, 1, 0)


def test_what_the_recipe_says_of_sampling_goes_first(imported, data, tmp_path):
    parts = {
        "samples": {"steps": 50, "sampler": {"eta": 0.5, "name": "ddim"}, "guidance": {"scale": 2}},
        "conditioning": {"tasks": {"text": 3, "image": 2}, "caption_drop": 0.2},
    }
    config = opened("opensora-v1", imported, data, tmp_path, **parts).config
    assert (config.samples.steps, config.samples.sampler.name, config.samples.sampler.eta) == (50, "ddim", 0.5)
    assert (config.samples.guidance.scale, config.samples.guidance.channels) == (2, 3)
    assert (config.conditioning.factorised, config.conditioning.tasks.image) == (False, 2)
    assert config.conditioning.caption_drop == 0.2
    factorised = opened("opensora-v1", imported, data, tmp_path, conditioning={"factorised": True}).config
    assert (factorised.conditioning.factorised, factorised.conditioning.tasks.image) == (True, 1)


@pytest.mark.parametrize(
    ("name", "diffusion", "sampler"),
    [
        ("opensora-v1", {"kind": "gaussian", "variance": "learned_range"}, "ancestral"),
        ("opensora-v1", {"kind": "flow"}, "euler"),
        ("opensora-v3", {"kind": "gaussian", "prediction": "velocity"}, "ddim"),
    ],
)
def test_with_another_process_the_sampler_is_one_for_that(imported, data, tmp_path, name, diffusion, sampler):
    assert opened(name, imported, data, tmp_path, diffusion=diffusion).config.samples.sampler.name == sampler


def test_samples_that_the_checkpoints_process_cannot_make_are_refused(imported, data, tmp_path):
    with pytest.raises(RecipeError, match="the sampler euler is for flow models"):
        opened("opensora-v1", imported, data, tmp_path, samples={"sampler": {"name": "euler"}})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"diffusion": {"prediction": "velocity"}}, r"diffusion\.prediction is velocity, it was reverse_velocity"),
        ({"diffusion": {"kind": "gaussian"}}, r"diffusion\.kind is gaussian, it was flow"),
        ({"diffusion": {"prediction": "reverse_velocity", "shift": 3}}, r"diffusion\.shift is 3\.0, it was 1\.0"),
    ],
)
def test_a_run_does_not_go_on_with_another_process(imported, data, tmp_path, monkeypatch, parts, said):
    kind = opened("opensora-v3", imported, data, tmp_path / "train", steps=2)
    kind.prepare()
    train(kind, monkeypatch)
    assert check_resume(opened("opensora-v3", imported, data, kind.run, steps=3)) == 2
    with pytest.raises(UserError, match=f"cannot go on from step 2: {said}"):
        check_resume(opened("opensora-v3", imported, data, kind.run, steps=3, **parts))
