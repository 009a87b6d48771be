"""An estimate from a sample says how sure it is, and is as sure as it says."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from pipelines.data.planning.estimate import (
    ADDS_UP,
    LEAST_OF_A_KIND,
    Estimation,
    PopulationItem,
    SampleCost,
    choose_sample,
    estimate_text,
    extrapolate,
)


def world(seed, videos=300, images=100, noise=0.5):
    """uri -> the true cost of every source. Sizes have a long tail, as files have; analysis costs seconds per byte and
    per file, the ratio differs from file to file, and nothing is kept of one video in five."""
    rng = np.random.default_rng(seed)
    costs = {}
    for kind, count, mean in (("video", videos, 16.0), ("image", images, 12.0)):
        for number, size in enumerate(rng.lognormal(mean, 1.0, count)):
            seconds = size / 1e6 * rng.lognormal(0, noise) if kind == "video" else 0.0
            kept = seconds * rng.uniform(0.2, 1) * (rng.random() > 0.2)
            uri = f"{kind}-{number:04d}"
            costs[uri] = SampleCost(
                uri=uri,
                bytes=int(size),
                media_type=kind,
                analysis_s=0.1 + 0.05 * seconds,
                encode_s=0.2 * kept,
                seconds=seconds,
                clips=int(kept // 2),
                kept_s=kept,
                shard_bytes=int(kept * 50_000) if kind == "video" else int(size / 4),
                tokens=int(kept * 1280),
            )
    return costs


def listing(costs):
    return [PopulationItem(cost.uri, cost.bytes, cost.media_type) for cost in costs.values()]


def estimated(costs, n, workers=4, **config):
    population = listing(costs)
    sample = [costs[item.uri] for item in choose_sample(population, n, seed=config.get("seed", 0))]
    return extrapolate(sample, population, workers, Estimation(sources=n, **config))


def truth(costs, *keys):
    return sum(getattr(cost, key) for cost in costs.values() for key in keys)


QUANTITIES = {
    "work_s": ("analysis_s", "encode_s"),
    "shard_bytes": ("shard_bytes",),
    "tokens": ("tokens",),
}


@pytest.mark.parametrize(("n", "confidence"), [(16, 0.8), (32, 0.9)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(n, confidence):
    trials = 150
    hits = dict.fromkeys(QUANTITIES, 0)
    for seed in range(trials):
        costs = world(seed)
        facts = estimated(costs, n, seed=seed, confidence=confidence, resamples=400)
        for name, keys in QUANTITIES.items():
            hits[name] += facts[name]["low"] <= truth(costs, *keys) <= facts[name]["high"]
    # Three standard errors of a share of so many trials, and 0.05 for what a studentised interval of a small sample
    # with a long tail is known to fall short.
    tolerance = 3 * math.sqrt(confidence * (1 - confidence) / trials) + 0.05
    for name, count in hits.items():
        assert count / trials == pytest.approx(confidence, abs=tolerance), name


def test_more_sources_make_it_surer():
    costs = world(1)
    widths = [e["high"] - e["low"] for e in (estimated(costs, n)["work_s"] for n in (12, 48, 192))]
    assert widths[0] > widths[1] > widths[2]


def test_all_sources_are_certain():
    costs = world(2, videos=10, images=5)
    facts = estimated(costs, 1000)
    for name, keys in QUANTITIES.items():
        assert facts[name]["low"] == facts[name]["value"] == facts[name]["high"] == pytest.approx(truth(costs, *keys))


def test_what_is_in_proportion_to_bytes_is_known_exactly():
    items = [PopulationItem(f"v{i}", 1000 * (i + 1), "video") for i in range(50)]
    cost = SampleCost("", 0, "video", 0.0, 0.0, 0.0, 0, 0.0, 0)
    sample = [replace(cost, uri=i.uri, bytes=i.bytes, analysis_s=i.bytes / 100) for i in items[::10]]
    work = extrapolate(sample, items, 1)["work_s"]
    assert work["value"] == pytest.approx(sum(i.bytes for i in items) / 100)
    assert (work["low"], work["high"]) == (pytest.approx(work["value"]), pytest.approx(work["value"]))


def test_images_tell_nothing_of_videos():
    video = SampleCost("v0", 1000, "video", 10.0, 0.0, 10.0, 0, 0.0, 0)
    image = SampleCost("i0", 1000, "image", 0.1, 0.0, 0.0, 1, 0.0, 100)
    sample = [video, replace(video, uri="v1"), image, replace(image, uri="i1")]
    population = [PopulationItem(cost.uri, cost.bytes, cost.media_type) for cost in sample]
    more = [PopulationItem(f"i{i}", 1000, "image") for i in range(2, 100)]
    assert extrapolate(sample, population + more, 1)["work_s"]["value"] == pytest.approx(20 + 100 * 0.1)


def test_wall_time_is_work_over_workers_and_no_less_than_the_largest_source():
    costs = world(3)
    one, four, all_at_once = (estimated(costs, 32, workers=w, startup_s=7.0) for w in (1, 4, 10_000))
    assert one["wall_s"]["value"] == pytest.approx(7 + one["work_s"]["value"])
    assert four["wall_s"]["value"] == pytest.approx(7 + one["work_s"]["value"] / 4)
    assert all_at_once["wall_s"]["value"] > 7 + one["work_s"]["value"] / 10_000
    assert "more workers will not help" in estimate_text(all_at_once)


def test_an_epoch_is_tokens_over_throughput():
    facts = estimated(world(4), 32, tokens_per_s=1000.0)
    assert facts["gpu_hours"]["value"] == pytest.approx(facts["tokens"]["value"] / 3.6e6)
    assert "1,000 tokens/s a GPU, the recipe" in estimate_text(facts)
    assert "Open-Sora" in estimate_text(estimated(world(4), 32))


@pytest.mark.parametrize("n", [1, 3])
def test_a_few_sources_say_nothing_of_the_spread(n):
    costs = world(5, images=0)
    facts = estimated(costs, n)
    assert facts["work_s"]["value"] > 0
    assert (facts["work_s"]["low"], facts["work_s"]["high"]) == (None, None)
    assert "[?]" in estimate_text(facts)
    assert "sample more sources" in estimate_text(facts)
    assert json.loads(json.dumps(facts)) == facts


def test_a_disk_that_may_be_too_small_is_named():
    costs = world(6)
    population = listing(costs)
    sample = [costs[item.uri] for item in choose_sample(population, 16)]
    need = extrapolate(sample, population, 1)["disk_bytes"]["high"]
    assert not extrapolate(sample, population, 1, free_bytes=math.ceil(need))["notes"]
    assert "free" in extrapolate(sample, population, 1, free_bytes=int(need) - 1)["notes"][0]


def test_the_same_sources_are_chosen_in_whatever_order_they_are_listed():
    population = listing(world(7))
    chosen = choose_sample(population, 24, seed=3)
    assert choose_sample(population[::-1], 24, seed=3) == chosen
    assert choose_sample(population, 24, seed=4) != chosen


@pytest.mark.parametrize("n", [1, 2, 7, 24, 1000])
def test_as_many_are_chosen_as_were_asked_for_and_none_twice(n):
    costs = world(8, videos=200, images=40)
    chosen = choose_sample(listing(costs), n)
    assert len({item.uri for item in chosen}) == len(chosen)
    assert min(n, 240) - 1 <= len(chosen) <= n + 2 * LEAST_OF_A_KIND
    assert {item.media_type for item in chosen} == {"image", "video"}


def test_small_and_large_files_are_chosen_in_proportion_to_the_root_of_their_bytes():
    items = [PopulationItem(f"s{i}", 100, "video") for i in range(90)]
    items += [PopulationItem(f"l{i}", 100 * 81, "video") for i in range(10)]
    large = [sum(i.uri[0] == "l" for i in choose_sample(items, 8, seed)) for seed in range(50)]
    assert set(large) == {4}  # nine times √bytes, a ninth as many


def test_a_file_as_large_as_all_others_is_always_seen():
    items = [PopulationItem(f"v{i}", 100, "video") for i in range(20)] + [PopulationItem("film", 10**9, "video")]
    assert all("film" in {i.uri for i in choose_sample(items, 5, seed)} for seed in range(20))
    assert len(choose_sample(items, 5)) == 5


def test_nothing_sampled_is_refused():
    with pytest.raises(ValueError, match="at least one source"):
        extrapolate([], [], 1)


def test_every_measure_of_a_source_is_summed():
    measures = set(SampleCost.__dataclass_fields__) - {"uri", "bytes", "media_type"}
    assert measures == set(ADDS_UP)
