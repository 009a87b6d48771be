"""A run that was killed, grew, shrank or changed its ZeRO stage trains what an undisturbed one does."""

import pytest

from tests.pipelines.train.runs import Run, differing

STEPS = 40
RECIPE = {
    "steps": STEPS,
    "model": {"width": 32, "depth": 2, "heads": 2},
    "vae": {"channels": 8, "fit_clips": 16},
    "batch": {"videos": 3, "images": 3, "packs": 2},
    "optimizer": {"lr": 1e-3, "warmup_steps": 5},
    "data": {"validation_share": 0.2},
    "validation": {"every": 10, "timesteps": [0.5]},
    "samples": {"every": 10, "steps": 2, "prompts": ["a red circle moving left"]},
    "checkpoint": {"every": 5, "keep": 20},
    "deepspeed": {"zero_stage": 2},
    "tracking": {"log_every": 1},
}
EXACT = ("step", "loss", "gradient_norm", "learning_rate", "clips")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    return Run(tmp_path_factory.mktemp("straight"), RECIPE, dataset).train()


@pytest.fixture
def run(dataset, tmp_path):
    return Run(tmp_path, RECIPE, dataset)


def in_parts(run, *starts):
    """``run``, started with one after the other of ``starts``, parts of the recipe: all ranks were killed when checkpoints
    of steps 15 and 25 stood, and the last start went to the end."""
    for start, step in zip(starts[:-1], (15, 25), strict=False):
        run.train(kill_at=step, **start)
        assert step <= run.saved() < step + 10
    return run.train(**starts[-1])


def assert_same_bits(run, straight):
    for name in EXACT:
        assert run.column(name) == straight.column(name), name
    assert differing(run.state(), straight.state()) == set()


def assert_same_steps(run, straight):
    assert run.column("clips") == straight.column("clips")
    assert run.column("loss") == pytest.approx(straight.column("loss"), rel=1e-5)


@pytest.mark.parametrize("starts", [2, 3])
def test_after_kills_it_ends_at_the_same_bits(run, straight, starts):
    assert_same_bits(in_parts(run, *[{}] * starts), straight)


def test_looking_changes_nothing(dataset, straight, tmp_path):
    blind = {"samples": {"prompts": []}, "validation": {"every": STEPS, "timesteps": [0.5]}}
    run = Run(tmp_path, {**RECIPE, **blind}, dataset).train()
    assert len(list((straight.path / "samples").iterdir())) == STEPS // 10
    assert not (run.path / "samples").exists()
    assert_same_bits(run, straight)


def test_other_numbers_of_workers_take_the_same_steps(run, straight):
    in_parts(run, {"world": 2}, {"world": 1}, {"world": 2})
    assert_same_steps(run, straight)


def test_other_zero_stages_take_the_same_steps(run, straight):
    in_parts(run, *({"deepspeed": {"zero_stage": stage}} for stage in (1, 3, 2)))
    assert_same_steps(run, straight)


def test_every_clip_comes_once_an_epoch(straight):
    """So that equal fingerprints are no accident of a few clips."""
    assert len(set(straight.column("clips"))) == STEPS
