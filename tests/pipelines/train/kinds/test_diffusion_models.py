"""Every model that a recipe can name starts and has a loss, under any process; one of classes has them as captions."""

import pytest
import torch

from kineograph.errors import UserError
from kineograph.models.stdit import STDiT
from pipelines.train.kinds.diffusion.config import SHAPES
from pipelines.train.preflight import preflight
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.steps import epoch
from tests.pipelines.train.steps import losses as losses_of_step
from tests.pipelines.train.tiny_dataset import LABELS, STILLS, VAE, VIDEOS, WORDS, make_dataset

SMALL = {"depth": 1, "width": 32, "heads": 2}
DIT = {"preset": "dit-s/2", **SMALL}
PROCESSES = [
    {"kind": "flow"},
    {"kind": "gaussian", "variance": "fixed_large"},
    {"kind": "gaussian", "variance": "learned_range"},
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("words"), WORDS, (VIDEOS, STILLS))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("labels"), LABELS, (STILLS,))


def opened(data, run, model, on_rank=False, **parts):
    raw = {"steps": 100, "model": model, "vae": VAE, "batch": {"videos": 4, "images": 4}, **parts}
    return open_kind(parse_train_recipe({**raw, "data": {"validation_share": 0}}), data, run, on_rank)


def losses(data, run, model, **parts):
    """(model at step 0, losses) of a step of each bucket."""
    driver = opened(data, run, model, **parts)
    preflight(driver)
    driver.prepare()
    kind = opened(data, run, model, on_rank=True, **parts)
    built = kind.build()
    kind.start(built)
    kind.place(torch.device("cpu"))
    steps = epoch(kind)
    assert {stretch.bucket for step in steps for stretch in kind.plan.step(step).stretches} == set(kind.dataset.buckets)
    return built, torch.cat([losses_of_step(kind, built, step).total for step in steps])


@pytest.mark.parametrize("name", SHAPES)
def test_every_preset_starts_and_has_a_loss(name, words, labels, tmp_path):
    model = {"preset": name, **SMALL}
    data = labels if getattr(SHAPES[name], "condition", "text") == "class" else words
    for number, diffusion in enumerate(PROCESSES[: 3 if SHAPES[name].learn_sigma else 2]):
        built, found = losses(data, tmp_path / str(number), model, diffusion=diffusion)
        assert found.isfinite().all()
        found.sum().backward()
        assert built.to_patches.weight.grad.any()


@pytest.mark.parametrize("pooled", [False, True])
def test_the_text_norm_is_fitted_where_there_is_one(words, tmp_path, pooled):
    built, _ = losses(words, tmp_path, {**SMALL, "pooled_text": pooled})
    assert isinstance(built, STDiT)
    assert hasattr(built, "text_norm") == pooled
    assert not pooled or built.text_norm.mean.any()


@pytest.mark.parametrize("name", [n for n in SHAPES if n.startswith("dit-")])
def test_a_dit_may_be_asked_for_words(words, tmp_path, name):
    _, found = losses(words, tmp_path, {"preset": name, **SMALL, "condition": "text"})
    assert found.isfinite().all()


def test_a_class_is_what_its_caption_says(labels, tmp_path):
    """The embedding of a class is trained by clips of it alone: of 0, 1, 2, and of none."""
    built, found = losses(labels, tmp_path, {**DIT, "num_classes": 5}, conditioning={"caption_drop": 0})
    torch.nn.init.normal_(built.to_patches.weight)
    torch.nn.init.normal_(built.final_modulation.weight)
    kind = opened(labels, tmp_path, {**DIT, "num_classes": 5}, on_rank=True, conditioning={"caption_drop": 0})
    kind.place(torch.device("cpu"))
    for step in epoch(kind):
        losses_of_step(kind, built, step).total.sum().backward()
    assert built.embed_label.weight.grad.any(dim=1).tolist() == [True, True, True, False, False, True]
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("data", "model", "parts", "message"),
    [
        ("words", DIT, {}, "captions encoded by t5:nowhere: set model.condition=text, or curate with .* labels"),
        ("labels", {**DIT, "condition": "text"}, {}, "set model.kind=dit and model.condition=class"),
        ("labels", SMALL, {}, "captions are numbers of classes, and the model is asked for words"),
        ("labels", {**DIT, "num_classes": 2}, {}, "the dataset has a clip of class 2: .* classes 0 to 1"),
        ("labels", DIT, {"samples": {"prompts": ["1", "1000"]}}, "samples.prompts asks for class 1000"),
        ("labels", DIT, {"samples": {"prompts": ["a cat"]}}, "a prompt is the number of a class"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(data, model, parts, message, request, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        opened(request.getfixturevalue(data), tmp_path, model, **parts).check()
    assert "\n" not in str(error.value)
