"""From a recipe's ``kind:`` to its config and to what trains it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from kineograph.config import Config, load_recipe, parse_config
from pipelines.train.config import TrainConfig
from pipelines.train.kinds.base import Kind
from pipelines.train.kinds.classifier.kind import ClassifierKind
from pipelines.train.kinds.diffusion.kind import DiffusionKind
from pipelines.train.kinds.vae.kind import VAEKind

KINDS: dict[str, type[Kind[Any]]] = {"diffusion": DiffusionKind, "vae": VAEKind, "classifier": ClassifierKind}


class _AnyRecipe(Config):
    """As much of a recipe as says of which kind it is."""

    model_config = ConfigDict(extra="ignore")

    kind: Literal["diffusion", "vae", "classifier"] = "diffusion"


def load_train_recipe(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """The recipe in ``path`` with ``overrides`` applied, as the config of its kind. Raises RecipeError."""
    overrides = list(overrides)
    return load_recipe(path, KINDS[load_recipe(path, _AnyRecipe, overrides).kind].recipe, overrides)


def parse_train_recipe(raw: dict[str, Any], overrides: Iterable[str] = ()) -> TrainConfig:
    """A recipe that is a mapping already, as the config of its kind. Raises RecipeError."""
    overrides = list(overrides)
    return parse_config(raw, KINDS[parse_config(raw, _AnyRecipe, overrides).kind].recipe, overrides)


def open_kind(config: TrainConfig, data: str | Path, run: Path, on_rank: bool = False) -> Kind[Any]:
    """What trains ``config`` on the curation run ``data``. Raises UserError when there is nothing to train on."""
    return KINDS[config.kind](config, data, run, on_rank)
