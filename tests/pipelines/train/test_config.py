"""The training recipe: mistakes are named before anything starts."""

import pytest

from kineograph.cli.recipes import read_recipe
from kineograph.config import parse_config
from kineograph.errors import RecipeError
from pipelines.train.config import TrainConfig


def test_the_shipped_recipe_is_valid():
    assert read_recipe("train", "demo", TrainConfig, ()).steps > 0


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
        ("model.patch=[2,2,2]", "one latent frame"),
        ("flow.shift=0", "'flow.shift'"),
        ("flow.logit_std=-1", "'flow.logit_std'"),
        ("validation.timesteps=[0.5,2]", "'validation.timesteps"),
        ("validation.timesteps=[]", "'validation.timesteps"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message):
    with pytest.raises(RecipeError) as error:
        parse_config({"steps": 100}, TrainConfig, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
