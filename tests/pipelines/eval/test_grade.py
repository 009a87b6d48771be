"""The oracle grades truth near 1 and mixed-up prompts near chance, and every score says how sure it is."""

import numpy as np
import pytest

from kineograph.media.geometry import Bucket
from kineograph.synth.oracle import expected
from pipelines.eval.config import Confidence, EvalConfig, Gate
from pipelines.eval.gate import judge, missed
from pipelines.eval.grade import (
    CHANCE,
    ORACLE_VERSION,
    accuracy_scores,
    flicker_score,
    flow_loss_score,
    oracle_grades,
)
from pipelines.eval.prompts import choose_prompts, grid_prompts
from pipelines.eval.truth import render_truth, scene_for

BUCKET, FPS = Bucket(32, 32, 9), 4.0


@pytest.fixture(scope="module")
def truth():
    prompts = grid_prompts(216, seed=3)
    return prompts, list(render_truth(prompts, 3, BUCKET, FPS))


def values(scores):
    return {score["name"]: score["value"] for score in scores}


def test_truth_is_graded_near_one(truth):
    prompts, videos = truth
    scores = accuracy_scores(oracle_grades(videos, prompts), Confidence(), seed=0)
    assert min(values(scores).values()) >= 0.98


def test_mixed_up_prompts_are_graded_near_chance(truth):
    prompts, videos = truth
    shuffled = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]
    for score in accuracy_scores(oracle_grades(videos, shuffled), Confidence(), seed=0):
        chance = score["chance"]
        four_sigma = 4 * (chance * (1 - chance) / score["n"]) ** 0.5
        assert score["value"] == pytest.approx(chance, abs=four_sigma)


def test_a_score_has_all_that_a_reader_needs(truth):
    prompts, videos = truth
    (colour, *_) = accuracy_scores(oracle_grades(videos[:8], prompts[:8]), Confidence(), 0, prefix="oracle_")
    assert set(colour) == {"name", "value", "n", "ci_low", "ci_high", "chance", "metric_version"}
    assert (colour["name"], colour["n"], colour["chance"]) == ("oracle_colour_accuracy", 8, CHANCE["colour"])
    assert colour["ci_low"] < colour["value"] == colour["ci_high"] == 1.0
    assert ORACLE_VERSION in colour["metric_version"]


def test_what_a_prompt_does_not_ask_for_is_not_graded(truth):
    _, videos = truth
    shown = [videos[0], videos[1], videos[2][:1]]
    grades = oracle_grades(shown, ["a dog", "a red circle", "a red circle moving up"])
    assert set(grades[0].values()) == {None}
    assert [grade["direction"] for grade in grades] == [None, None, None]
    assert accuracy_scores(grades[:1], Confidence(), 0) == []


def test_flicker_leaves_stills_out(truth):
    _, videos = truth
    (score,) = flicker_score([videos[0], videos[1][:1]], Confidence(), 0)
    assert (score["n"], score["chance"]) == (1, None)
    assert flicker_score([videos[0][:1]], Confidence(), 0) == []


def test_the_interval_of_the_flow_loss_is_over_clips():
    losses = np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])
    score = flow_loss_score(losses, Confidence(), 0)
    assert (score["value"], score["n"], score["ci_low"], score["ci_high"]) == (3.0, 3, 2.0, 4.0)


def test_the_grid_asks_for_everything_before_it_asks_again():
    prompts = grid_prompts(144, seed=1)
    assert len(set(prompts[:72])) == len(set(prompts[72:])) == 72
    assert all(len(expected(prompt)) == 1 for prompt in prompts)
    assert prompts[:64] == grid_prompts(64, seed=1) != grid_prompts(64, seed=2)


def test_every_sample_has_a_seed_of_its_own():
    samples = choose_prompts(200, 0, ["a cat", "a dog"])
    assert [sample.text for sample in samples[:3]] == ["a cat", "a dog", "a cat"]
    assert len({sample.seed for sample in samples}) == 200
    assert {s.seed for s in samples}.isdisjoint(s.seed for s in choose_prompts(200, 1, ["a cat"]))


def test_a_scene_shows_its_prompt():
    prompt = "a red circle moving left slowly and a blue square"
    scene = scene_for(prompt, np.random.default_rng(0))
    first, second = scene.objects
    assert (first.colour, first.shape, first.direction, first.speed) == ("red", "circle", "left", "slow")
    assert 0.15 <= first.rate <= 0.25
    assert (second.colour, second.shape, second.direction, second.rate) == ("blue", "square", None, 0.0)
    with pytest.raises(ValueError, match="no scene"):
        scene_for("a dog", np.random.default_rng(0))


def score(name, value):
    return {"name": name, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}


def test_the_gate_names_what_is_missed_and_what_was_not_measured():
    gate = Gate(colour_accuracy=0.9, direction_accuracy=0.5, validation_loss=0.3, flicker=0.9)
    scores = [score("colour_accuracy", 0.9), score("direction_accuracy", 0.42), score("validation_loss", 0.4)]
    short = missed(judge(gate, scores))
    assert short == [
        "direction_accuracy is 0.420 [0.320, 0.520], at least 0.5 is asked",
        "flicker was not measured, at least 0.9 is asked",
        "validation_loss is 0.400 [0.300, 0.500], at most 0.3 is asked",
    ]
    assert judge(Gate(), scores) == []


def test_the_recipe_digest_is_of_what_decides_the_scores():
    plain = EvalConfig()
    assert plain.recipe_digest == EvalConfig(report={"videos": 1}).recipe_digest
    assert plain.recipe_digest != EvalConfig(seed=1).recipe_digest
