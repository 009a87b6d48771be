"""The training recipe: mistakes are named before anything starts."""

from pathlib import Path

import pytest
import torch

import pipelines.train
from kineograph.errors import RecipeError, UserError
from kineograph.models.vae.discriminator import DiscriminatorConfig, PatchDiscriminator
from pipelines.train.registry import KINDS, load_train_recipe, open_kind, parse_train_recipe
from tests.pipelines.train.tiny_dataset import make_dataset

SHIPPED = sorted((Path(pipelines.train.__path__[0]) / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path):
    assert load_train_recipe(path).steps > 0


def test_a_recipe_ships_for_every_kind():
    assert {load_train_recipe(path).kind for path in SHIPPED} == set(KINDS)


def test_a_recipe_without_kind_is_of_diffusion():
    assert parse_train_recipe({"steps": 100}).kind == "diffusion"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({}, (128, 4, 4)),
        ({"depth": 2}, (128, 2, 4)),
        ("stdit-b/2", (768, 12, 12)),
        ({"preset": "stdit-b/2", "depth": 3}, (768, 3, 12)),
        ({"kind": "dit", "width": 64, "heads": 2}, (64, 28, 2)),
        ({"preset": "dit-s/4", "condition": "text"}, (384, 12, 6)),
    ],
)
def test_a_model_is_a_preset_and_what_is_changed_of_it(model, shape):
    recipe = parse_train_recipe({"steps": 100, "model": model})
    assert (recipe.model.width, recipe.model.depth, recipe.model.heads) == shape


def test_a_dumped_recipe_is_read_back_as_it_was():
    for path in SHIPPED:
        recipe = load_train_recipe(path)
        assert parse_train_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.leaning_rate=1", "unknown key 'optimizer.leaning_rate'"),
        ("modle.width=64", "did you mean 'model"),
        ("model.widht=64", "did you mean 'model.width'"),
        ("steps=0", "'steps'"),
        ("optimizer.lr=-1", "'optimizer.lr'"),
        ("optimizer.warmup_steps=100", "must be below steps"),
        ("deepspeed.zero_stage=4", "'deepspeed.zero_stage'"),
        ("precision=fp8", "'precision'"),
        ("vae.channels=49", "more than the 48 pixels"),
        ("data.validation_share=1", "'data.validation_share'"),
        ("model.heads=3", "multiple"),
        ("model=stdit-tini/2", "no preset 'stdit-tini/2' for this; did you mean 'stdit-tiny/2'?"),
        ("model=vit-b/16", "no preset 'vit-b/16' for this"),
        ("model.patch=[2,2,2]", "one latent frame"),
        ("diffusion.shift=0", "'diffusion.shift'"),
        ("diffusion.logit_std=-1", "'diffusion.logit_std'"),
        ("kind=vea", "'kind': input should be 'diffusion', 'vae' or 'classifier'"),
        ("vae.kind=folder", "missing key 'vae.path'"),
        ("vae.kind=foldr", "'vae.kind': should be one of 'patch_pca', 'folder' (given: 'foldr')"),
        ("vae.chanels=4", "unknown key 'vae.chanels'; did you mean 'vae.channels'?"),
        ("vae.path=x", "the key 'vae.path' does not go with the other keys of 'vae'"),
        ("diffusion={kind: gaussian, variance: learned_range}", "set model.learn_sigma=true"),
        ("conditioning.tasks={image: 0, text: 1}", "set it, or conditioning.factorised=false"),
        ("samples.sampler={timesteps: [0.5, 0.9]}", "must fall from noise to data"),
        ("samples.sampler={timesteps: [2]}", "samples: timesteps [2.0] leave the path"),
        ("validation.timesteps=[0.5,2]", "'validation.timesteps"),
        ("validation.timesteps=[]", "'validation.timesteps"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message):
    with pytest.raises(RecipeError) as error:
        parse_train_recipe({"steps": 100}, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


GAUSSIAN = "diffusion={kind: gaussian, prediction: velocity}"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "euler"),
        ([GAUSSIAN], "ddim"),
        ([GAUSSIAN, "samples.sampler.eta=0.5"], "ddim"),
        ([GAUSSIAN, "samples.steps=7"], "ddim"),
        ([GAUSSIAN, "samples.sampler.name=dpm_solver++"], "dpm_solver++"),
        (["samples.sampler.name=heun"], "heun"),
    ],
)
def test_the_sampler_is_one_for_the_process(overrides, name):
    recipe = parse_train_recipe({"steps": 100}, overrides)
    assert recipe.samples.sampler.name == name
    assert parse_train_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["samples.sampler.name=euler"], "samples: the sampler euler is for flow models"),
        (["samples.steps=1001"], "samples: "),
        (["diffusion.sections=[10, 15]"], "samples: sections [10, 15] share out 25 steps"),
        (["diffusion.spacing=leading", "samples.steps=1"], "samples: one step on this path would start at the data"),
    ],
)
def test_a_process_that_cannot_be_sampled_is_refused_in_one_line(overrides, message):
    with pytest.raises(RecipeError) as error:
        parse_train_recipe({"steps": 100}, [GAUSSIAN, *overrides])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("layers", "side"), [(3, 24), (4, 48), (5, 96)])
def test_a_discriminator_judges_no_crop_that_is_smaller_than_its_patch(layers, side):
    config = DiscriminatorConfig(width=8, layers=layers)
    assert PatchDiscriminator(config)(torch.zeros(1, 3, 1, side, side)).shape == (1, 1)
    vae = {"kind": "vae", "steps": 100, "vae": {"architecture": "causal-mini"}}
    loss = {"adversarial": {"discriminator": {"layers": layers}}}
    parse_train_recipe({**vae, "loss": loss, "crop": {"size": [side, side]}})
    parse_train_recipe({**vae, "crop": {"size": [side, side - 1]}})
    with pytest.raises(RecipeError, match=f"layers needs sides of {side} pixels or more"):
        parse_train_recipe({**vae, "loss": loss, "crop": {"size": [side, side - 1]}})


def test_a_discriminator_judges_no_bucket_that_is_smaller_than_its_patch(tmp_path):
    data = make_dataset(tmp_path / "data")  # of 64x64 pixels
    for layers, crop in ((4, {}), (4, {"size": [64, 64]}), (5, {}), (5, {"size": [96, 96]})):
        loss = {"adversarial": {"discriminator": {"layers": layers}}}
        raw = {"kind": "vae", "steps": 100, "vae": {"architecture": "causal-mini"}, "loss": loss, "crop": crop}
        kind = open_kind(parse_train_recipe(raw), data, tmp_path / "run")
        if layers == 4:
            kind.check()
        else:
            with pytest.raises(UserError, match=r"of bucket 64x64x9 64x64 pixels are seen, .* needs sides of 96"):
                kind.check()
