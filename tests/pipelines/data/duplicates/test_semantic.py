"""Of clips that mean the same the best one is kept."""

import numpy as np
import pytest

from pipelines.data.duplicates import semantic
from pipelines.data.duplicates.semantic import SemanticDuplicates, semantic_duplicates


def directions(rng, number, width=64):
    return rng.normal(size=(number, width)).astype(np.float32)


def pairs(found):
    return [(one.id, one.of) for one in found]


def test_the_better_of_two_near_clips_is_kept():
    rng = np.random.default_rng(0)
    base = directions(rng, 2)
    vectors = np.concatenate([base, base[:1] + 0.1 * directions(rng, 1)])
    (found,) = semantic_duplicates(["a", "b", "c"], vectors, [(1.0,), (1.0,), (2.0,)], 0.95)
    assert (found.id, found.of) == ("a", "c")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found.cosine == pytest.approx(float(unit[0] @ unit[2]), abs=1e-6)
    assert semantic_duplicates(["a", "b", "c"], vectors, [(1.0,), (1.0,), (2.0,)], 0.999) == []


def test_no_chain_leads_away_from_what_is_kept():
    angles = np.radians([0, 15, 30])
    line = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = semantic_duplicates(["a", "b", "c"], line, [(0.0,)] * 3, float(np.cos(np.radians(20))))
    assert pairs(found) == [("b", "a")]  # c is near b, but b is not kept


def test_blocks_and_order_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(1)
    centres = directions(rng, 40)
    vectors = np.repeat(centres, 5, axis=0) + 0.15 * directions(rng, 200)
    ids, quality = [f"{i:03d}" for i in range(200)], [(float(q),) for q in rng.integers(0, 3, 200)]
    whole = semantic_duplicates(ids, vectors, quality, 0.95)
    assert len(whole) > 100
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = [i for i in range(200) if ids[i] not in {one.id for one in whole}]
    near = unit[kept] @ unit[kept].T
    assert (near - np.eye(len(kept))).max() < 0.95
    monkeypatch.setattr(semantic, "_BLOCK", 7)
    mixed = rng.permutation(200)
    again = semantic_duplicates([ids[i] for i in mixed], vectors[mixed], [quality[i] for i in mixed], 0.95)
    assert pairs(again) == pairs(whole)


def test_clusters_find_what_all_pairs_find(monkeypatch):
    monkeypatch.setattr(semantic, "_CLUSTER_CLIPS", 60)
    rng = np.random.default_rng(2)
    topics = np.repeat(directions(rng, 6), 50, axis=0) + 0.5 * directions(rng, 300)
    vectors = np.concatenate([topics, topics[:60] + 0.02 * directions(rng, 60)])
    ids = [f"{i:03d}" for i in range(360)]
    whole = semantic_duplicates(ids, vectors, [(0.0,)] * 360, 0.99)
    clustered = semantic_duplicates(ids, vectors, [(0.0,)] * 360, 0.99, exact_clips=100)
    assert len(whole) == 60
    assert set(pairs(clustered)) <= set(pairs(whole))
    assert len(clustered) >= 57


def test_it_is_off_by_default_and_refuses_what_it_cannot_compare():
    assert not SemanticDuplicates().enabled
    assert semantic_duplicates([], np.empty((0, 8), np.float32), [], 0.9) == []
    with pytest.raises(ValueError, match="zero"):
        semantic_duplicates(["a"], np.zeros((1, 8), np.float32), [(0.0,)], 0.9)
    with pytest.raises(ValueError, match="2 ids"):
        semantic_duplicates(["a", "b"], np.ones((1, 8), np.float32), [(0.0,)], 0.9)
