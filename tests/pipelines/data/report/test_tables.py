"""The numbers behind the page add up."""

from itertools import pairwise

import numpy as np
import pytest

from kineograph.store.schema import Reason
from pipelines.data.report.columns import Clips
from pipelines.data.report.duplicates import duplicate_facts
from pipelines.data.report.pictures import Album
from pipelines.data.report.tables import caption_facts, funnel, reason_facts, time_facts


def test_the_funnel_ends_with_what_is_written(ledger):
    totals = ledger.summary["totals"]
    steps = funnel(Clips.of(ledger.clips), totals)["steps"]
    assert steps[-1]["clips"] == totals["clips_kept"]
    assert steps[-1]["seconds"] == pytest.approx(totals["seconds"]["kept"])
    assert steps[0]["seconds"] == pytest.approx(totals["seconds"]["input"])
    assert steps[0]["sources"] - steps[1]["lost_sources"] == steps[1]["sources"]
    for before, step in pairwise(steps[2:]):
        assert before["clips"] - step["lost_clips"] == step["clips"]
        assert before["seconds"] - step["lost_seconds"] == pytest.approx(step["seconds"])


def test_the_funnel_follows_the_order_of_the_checks(ledger):
    names = [step["name"] for step in funnel(Clips.of(ledger.clips), ledger.summary["totals"])["steps"]]
    checks = [reason.value for reason in Reason]
    order = [checks.index(name) for name in names if name in checks]
    assert order == sorted(order)
    assert len(order) == 22


def test_a_reason_tells_how_many_fail_it_and_how_many_fail_nothing_else(source, clip):
    blur, text = (Reason.BLUR, 0.7, 0.6), (Reason.TEXT, 0.2, 0.1)
    clips = [clip(0, [blur]), clip(1, [blur, text]), clip(2, [text]), clip(3)]
    facts = {f["reason"]: f for f in reason_facts([source], Clips.of(clips), Album(), 100.0)}
    assert (facts["blur"]["clips"], facts["blur"]["fails"], facts["blur"]["alone"]) == (2, 2, 1)
    assert (facts["text"]["clips"], facts["text"]["fails"], facts["text"]["alone"]) == (1, 2, 1)


def test_examples_go_from_the_nearest_to_the_threshold_to_the_farthest(source, clip):
    values = np.random.default_rng(0).uniform(0.6, 1.0, 50)
    clips = [clip(i, [(Reason.BLUR, value, 0.6)]) for i, value in enumerate(values)]
    (fact,) = reason_facts([source], Clips.of(clips), Album(), 100.0)
    shown = [example["measured"] for example in fact["examples"]]
    assert shown == sorted(shown)
    assert shown[0] == f"blur {values.min():.3g}"
    assert shown[-1] == f"blur {values.max():.3g}"
    assert {example["threshold"] for example in fact["examples"]} == {"0.6"}


def test_duplicates_stand_beside_the_one_that_is_kept(source, clip):
    near, far = ((Reason.PERCEPTUAL_DUPLICATE, value, 10.0) for value in (2.0, 9.0))
    clips = [clip(0), clip(1, [near], duplicate_of="c000000"), clip(2, [far], duplicate_of="c000000")]
    (group,) = duplicate_facts([source], Clips.of(clips), Album())
    (cluster,) = group["clusters"]
    assert cluster["kept"]["clip_id"] == "c000000"
    assert [member["measured"] for member in cluster["members"]] == ["distance 9", "distance 2"]


def test_copies_of_a_file_are_named_beside_the_picture_of_the_one_that_is_kept(source, clip):
    copy = {**source, "uri": "b.mp4", "reason": "exact_duplicate", "status": "rejected", "duplicate_of": "s0"}
    (group,) = duplicate_facts([source, copy], Clips.of([clip(0), clip(1)]), Album())
    (cluster,) = group["clusters"]
    assert [file["uri"] for file in cluster["files"]] == ["b.mp4"]
    assert cluster["kept"]["clip_id"] == "c000000"


def test_a_source_that_looks_the_same_is_listed_with_what_was_measured(source, clip):
    note = "looks the same as videos/a.mp4 (distance 2.1)"
    copy = {**source, "source_id": "s1", "uri": "b.mp4", "reason": "perceptual_duplicate", "status": "rejected"}
    (group,) = duplicate_facts([source, {**copy, "duplicate_of": "s0", "detail": note}], Clips.of([clip()]), Album())
    assert group["clusters"][0]["files"] == [{"uri": "b.mp4", "note": note}]


def test_a_duplicate_of_something_that_is_not_in_the_ledger_is_still_shown(page_of, source, clip):
    lone = clip(0, [(Reason.SEMANTIC_DUPLICATE, 0.01, 0.05)], duplicate_of="elsewhere")
    assert "elsewhere" in page_of([source], [lone])


def test_captions_are_counted_by_origin_among_the_kept(clip):
    said = {"caption": "a red car", "caption_source": "model", "caption_model": "vlm/2b"}
    clips = [clip(0, **said), clip(1, **said), clip(2), clip(3, [(Reason.BLUR, 0.7, 0.6)], **said)]
    model, none = caption_facts(Clips.of(clips), Album())
    assert (model["source"], model["clips"], model["share"], model["words"]) == ("model", 2, 2 / 3, 3)
    assert model["models"] == [{"name": "vlm/2b", "clips": 2}]
    assert (none["source"], none["clips"], none["examples"]) == ("none", 1, [])


def test_stages_show_cores_and_seconds_of_input_per_second(source):
    stages = [
        {"stage": "analyse", "items": 1, "wall_s": 30.0, "busy_s": 60.0},
        {"stage": "write", "items": 0, "wall_s": 10.0, "busy_s": 0.0},
    ]
    first, second = time_facts([source], stages, 300.0, 50.0)["stages"]
    assert (first["share"], first["cores"], first["speed"]) == (0.75, 2.0, 10.0)
    assert (second["share"], second["cores"]) == (0.25, 0.0)
