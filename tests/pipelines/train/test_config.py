"""The training recipe: mistakes are named before anything starts."""

from pathlib import Path

import pytest

import pipelines.train
from kineograph.errors import RecipeError
from pipelines.train.registry import KINDS, load_train_recipe, parse_train_recipe

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
        ("workers.zero_stage=3", "'workers.zero_stage'"),
        ("workers.count=40", "less than one clip for each of 40 workers"),
        ("precision=fp8", "'precision'"),
        ("vae.channels=49", "more than the 48 pixels"),
        ("data.validation_share=1", "'data.validation_share'"),
        ("model.heads=3", "multiple"),
        ("model=stdit-tini/2", "no preset 'stdit-tini/2' for this; did you mean 'stdit-tiny/2'?"),
        ("model=vit-b/16", "no preset 'vit-b/16' for this"),
        ("model=dit-s/4", "set model.condition=text"),
        ("model.patch=[2,2,2]", "one latent frame"),
        ("diffusion.shift=0", "'diffusion.shift'"),
        ("diffusion.logit_std=-1", "'diffusion.logit_std'"),
        ("kind=vea", "'kind': input should be 'diffusion', 'vae' or 'classifier'"),
        ("vae.kind=folder", "missing key 'vae.path'"),
        ("vae.kind=foldr", "'vae.kind': should be one of 'patch_pca', 'folder' (given: 'foldr')"),
        ("vae.chanels=4", "unknown key 'vae.chanels'; did you mean 'vae.channels'?"),
        ("vae.path=x", "the key 'vae.path' does not go with the other keys of 'vae'"),
        ("diffusion={kind: gaussian, variance: learned_range}", "set model.learn_sigma=true"),
        ("validation.timesteps=[0.5,2]", "'validation.timesteps"),
        ("validation.timesteps=[]", "'validation.timesteps"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message):
    with pytest.raises(RecipeError) as error:
        parse_train_recipe({"steps": 100}, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
