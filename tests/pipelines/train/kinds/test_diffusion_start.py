"""Fine-tuning: the weights, the model, the process and the autoencoder of a checkpoint."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from kineograph.diffusion.flow import FlowConfig
from kineograph.errors import RecipeError, UserError
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig, fingerprint, load_autoencoder, save_autoencoder
from kineograph.store.checkpoints import CONFIG, checkpoint_folder, seal
from kineograph.store.commit import write_json
from pipelines.train.pipeline import plan
from pipelines.train.registry import open_kind, parse_train_recipe

FLOW = FlowConfig(shift=3.0, prediction="velocity")


def save(run, **facts):
    """Step 10 of a run, whose model says something."""
    folder = checkpoint_folder(run, 10)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = STDiT(STDiTConfig(in_channels=6, text_width=384, width=32, depth=2, heads=2, qk_norm="none"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.text_norm.mean.fill_(0.5)
    vae = PatchPCA(PatchPCAConfig(channels=6))
    vae.fit([torch.rand(3, 9, 16, 16) for _ in range(4)])
    save_file(model.state_dict(), folder / "ema.safetensors")
    save_autoencoder(vae, folder / "vae")
    config = {
        "kind": "diffusion",
        "model": model.config.model_dump(mode="json"),
        "diffusion": FLOW.model_dump(mode="json"),
        "text_encoder": {"name": "minilm", "width": 384, "max_tokens": 64},
    }
    write_json(folder / CONFIG, {**config, **facts})
    seal(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / "start")


def opened(dataset, run, start, **parts):
    config = parse_train_recipe({"steps": 100, "start": str(start), "data": {"validation_share": 0.2}, **parts})
    return open_kind(config, dataset, run)


@pytest.mark.parametrize("name", ["checkpoint", "run"])
def test_it_is_the_model_of_the_checkpoint_with_its_weights(dataset, checkpoint, tmp_path, name):
    start = checkpoint if name == "checkpoint" else checkpoint.parents[1]
    kind = opened(dataset, tmp_path / "train", start)
    assert (kind.config.model.depth, kind.config.model.qk_norm, kind.config.diffusion) == (2, "none", FLOW)
    kind.prepare()
    rank = open_kind(parse_train_recipe(kind.config.model_dump(mode="json")), dataset, kind.run, on_rank=True)
    model = rank.build()
    rank.start(model)
    theirs = load_file(checkpoint / "ema.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert fingerprint(rank.vae) == fingerprint(load_autoencoder(checkpoint / "vae"))


def test_the_plan_knows_its_size(dataset, checkpoint, tmp_path):
    config = parse_train_recipe({"steps": 100, "start": str(checkpoint), "data": {"validation_share": 0.2}})
    facts = plan(config, dataset, tmp_path / "train")
    weights = STDiT(STDiTConfig(in_channels=6, text_width=384, width=32, depth=2, heads=2, qk_norm="none"))
    assert facts["parameters"] == sum(p.numel() for p in weights.parameters())


def test_the_recipe_of_a_run_that_has_begun_is_taken_again(dataset, checkpoint, tmp_path):
    """It names the checkpoint and holds its model."""
    first = opened(dataset, tmp_path / "train", checkpoint, conditioning={"image_fps": 24.0})
    written = first.config.model_dump(mode="json")
    again = open_kind(parse_train_recipe(written), dataset, tmp_path / "train")
    assert again.config == first.config
    assert again.config.conditioning.image_fps == 24.0


def test_the_recipe_of_a_run_from_an_older_checkpoint_is_taken_again(dataset, tmp_path):
    """One whose model lacks a key that has a default."""
    model = STDiTConfig(in_channels=6, text_width=384, width=32, depth=2, heads=2, qk_norm="none").model_dump(
        mode="json"
    )
    model.pop("remodulate_given")
    first = opened(dataset, tmp_path / "train", save(tmp_path / "start", model=model))
    again = open_kind(parse_train_recipe(first.config.model_dump(mode="json")), dataset, tmp_path / "train")
    assert again.config == first.config


def test_it_tells_of_images_what_the_checkpoint_was_told(dataset, tmp_path):
    kind = opened(dataset, tmp_path / "train", save(tmp_path / "start", image_fps=120.0))
    assert kind.config.conditioning.image_fps == 120.0
    kind.prepare()
    rank = open_kind(parse_train_recipe(kind.config.model_dump(mode="json")), dataset, kind.run, on_rank=True)
    assert rank.describe()["image_fps"] == 120.0


def test_the_process_may_be_another(dataset, checkpoint, tmp_path):
    assert opened(dataset, tmp_path, checkpoint, diffusion={"shift": 7.0}).config.diffusion.shift == 7.0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": {"depth": 3}}, "leave out 'model'"),
        ({"vae": {"channels": 8}}, "the autoencoder has 8 channels, and start .* takes 6: leave out 'vae'"),
        ({"start": "nowhere"}, "no checkpoint at nowhere"),
        ({"diffusion": {"kind": "gaussian", "variance": "learned_range"}}, "set model.learn_sigma=true"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(dataset, checkpoint, tmp_path, parts, message):
    with pytest.raises((UserError, RecipeError), match=message) as error:
        opened(dataset, tmp_path, **{"start": checkpoint, **parts}).check()
    assert "\n" not in str(error.value)


def test_a_dataset_with_captions_of_another_encoder_is_refused(dataset, tmp_path):
    start = save(tmp_path / "start", text_encoder={"name": "t5:xxl", "width": 384, "max_tokens": 64})
    with pytest.raises(UserError, match=r"captions encoded by minilm, and start .* knows those of t5:xxl"):
        opened(dataset, tmp_path, start).check()


def test_a_checkpoint_of_another_kind_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="is a checkpoint of kind classifier"):
        opened(dataset, tmp_path, save(tmp_path / "start", kind="classifier"))
