"""The exam grades what a run decided: each wrong decision lowers the number that it is about, and no other."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kineograph.errors import UserError
from kineograph.store.schema import CLIP_SCHEMA, SOURCE_SCHEMA
from pipelines.data.exam.grade import grade, grade_rows, grade_text, read_truth

FPS = 10.0
FAILS = {"black": "black", "static": "static", "blurred": "blur", "text": "text", "flashing": "flashing"}
SIGNALS = ("black", "static", "blur", "flashing", "text_area")


def truth_file(path, *scenes, kind="video", copy_of=None, offset=0.0, active=None, detail=None, repeats=None):
    """``scenes``: (kind, start_s, end_s); none is a file that is not valid; one of no length is an image."""
    valid, image = bool(scenes), bool(scenes) and scenes[-1][2] == 0
    return {
        "path": path,
        "kind": kind,
        "detail": detail,
        "valid": valid,
        "width": 160 if valid else None,
        "height": 100 if valid else None,
        "active": (active or [0, 0, 160, 100]) if valid else None,
        "fps": FPS if valid and not image else None,
        "cuts": [round(start * FPS) for _, start, _ in scenes[1:]],
        "transitions": [],
        "scenes": [
            {
                "kind": scene,
                "start_s": start,
                "end_s": end,
                "flashes_per_s": 5.0 if scene == "flashing" else 0.0,
                "repeats_s": repeats,
            }
            for scene, start, end in scenes
        ],
        "duplicate_of": copy_of,
        "offset_s": offset if copy_of else None,
    }


def clip_row(file, shot, start, end, *failed, **changes):
    return {
        "clip_id": f"{file['path']}:{start}",
        "uri": file["path"],
        "media_type": "video" if file["fps"] else "image",
        "shot": shot,
        "start_s": start,
        "end_s": end,
        "start_frame": round(start * FPS),
        "end_frame": max(1, round(end * FPS)),
        "content": file["active"],
        "crop": file["active"],
        **dict.fromkeys(SIGNALS, 0.5),
        "decision": "reject" if failed else "keep",
        "reason": failed[0] if failed else "",
        "failed": list(failed),
        "value": 0.5,
        "duplicate_of": "",
        **changes,
    }


def perfect(files):
    """The ledger of a run that made no mistake: a clip for each scene."""
    sources, clips = [], []
    for file in files:
        seconds = file["scenes"][-1]["end_s"] if file["scenes"] else 0.0
        reason = {"truncated": "corrupt", "foreign": "not_media", "exact_duplicate": "exact_duplicate"}.get(
            file["kind"]
        )
        reason = None if file["detail"] == "partial" else reason
        same = file["duplicate_of"] if reason == "exact_duplicate" else file["path"]
        sources.append(
            {
                "source_id": f"id of {same}",
                "uri": file["path"],
                "seconds": seconds,
                "status": "rejected" if reason else "ok",
                "reason": reason or "",
                "detail": "half of it is gone" if file["detail"] == "partial" else "",
                "duplicate_of": f"id of {same}" if reason == "exact_duplicate" else "",
            }
        )
        for shot, scene in enumerate([] if reason else file["scenes"]):
            failed = [FAILS[scene["kind"]]] if scene["kind"] in FAILS else []
            named = {}
            if file["kind"] == "reencoded_duplicate":
                failed, named = ["perceptual_duplicate"], {"duplicate_of": f"id of {file['duplicate_of']}"}
            clips.append(clip_row(file, shot, scene["start_s"], scene["end_s"], *failed, **named))
    return sources, clips


@pytest.fixture
def files():
    box = [0, 12, 160, 76]
    return [
        truth_file("good.mp4", ("normal", 0, 3), ("normal", 3, 6)),
        truth_file("black.mp4", ("normal", 0, 3), ("black", 3, 6)),
        truth_file("static.mp4", ("static", 0, 3)),
        truth_file("blurred.mp4", ("blurred", 0, 3), ("normal", 3, 6)),
        truth_file("text.mp4", ("text", 0, 3)),
        truth_file("flashing.mp4", ("normal", 0, 3), ("flashing", 3, 6)),
        truth_file("bars.mp4", ("letterbox", 0, 3), ("letterbox", 3, 6), kind="letterbox", active=box),
        truth_file("photo.png", ("normal", 0, 0), kind="image"),
        truth_file("no_index.mp4", kind="truncated", detail="no_index"),
        truth_file("partial.mp4", kind="truncated", detail="partial"),
        truth_file("list.mp4", kind="foreign", detail="hls"),
        truth_file("again.mp4", ("normal", 0, 3), ("normal", 3, 6), kind="exact_duplicate", copy_of="good.mp4"),
        truth_file(
            "later.mp4", ("normal", 0, 2), ("normal", 2, 5), kind="reencoded_duplicate", copy_of="good.mp4", offset=1.0
        ),
    ]


def graded(files, sources, clips):
    return {check["check"]: check for check in grade_rows(sources, clips, files)["checks"]}


def at(rows, uri, place=0):
    return [row for row in rows if row["uri"] == uri][place]


def reject(clip, *failed):
    clip.update(decision="reject", reason=failed[0], failed=list(failed))


def keep(clip):
    clip.update(decision="keep", reason="", failed=[])


def fallen(files, sources, clips):
    """{(check, "precision" | "recall"): (right, of)} of what is not 1."""
    return {
        (name, score): (round(check[score]["value"] * check[score]["n"]), check[score]["n"])
        for name, check in graded(files, sources, clips).items()
        for score in ("precision", "recall")
        if check[score] and check[score]["value"] < 1
    }


def test_a_run_without_a_mistake_holds_and_every_check_has_a_number(files):
    facts = grade_rows(*perfect(files), files)
    assert (facts["holds"], facts["short"], facts["lost"]) == (True, [], [])
    numbers = {check["check"]: (check["positives"], check["predicted"]) for check in facts["checks"]}
    assert numbers == {
        "cuts": (6, 6),
        "transition": (0, 0),
        "black": (1, 1),
        "static": (1, 1),
        "blur": (1, 1),
        "flashing": (1, 1),
        "text": (1, 1),
        "letterbox": (2, 2),
        "corrupt": (1, 1),
        "not_media": (1, 1),
        "partial": (1, 0),
        "exact_duplicate": (1, 1),
        "perceptual_duplicate": (1, 2),
    }
    assert facts["checks"][0]["recall"]["low"] < 0.7  # six of six say little
    assert next(check for check in facts["checks"] if check["check"] == "transition")["state"] == "nothing to grade"


@pytest.mark.parametrize("check", ["black", "static", "blur", "flashing", "text"])
def test_a_spoilt_scene_that_passes_lowers_recall_and_a_good_one_that_fails_precision(files, check):
    kind = next(kind for kind, reason in FAILS.items() if reason == check)
    sources, clips = perfect(files)
    spoilt = at(clips, f"{kind}.mp4", -1 if kind in ("black", "flashing") else 0)
    keep(spoilt)
    assert fallen(files, sources, clips) == {(check, "recall"): (0, 1)}
    spoilt["failed"] = ["motion_low", check]  # judged by all that it fails, not by the first
    assert fallen(files, sources, clips) == {}
    reject(at(clips, "good.mp4", 1), check)
    assert fallen(files, sources, clips) == {(check, "precision"): (1, 2)}


def test_what_cannot_be_asked_of_a_clip_is_left_out(files):
    sources, clips = perfect(files)
    reject(at(clips, "black.mp4", 1), "black", "static", "blur")  # black neither moves nor is sharp
    reject(at(clips, "photo.png"), "static")  # an image has no motion
    assert fallen(files, sources, clips) == {}
    mixed = at(clips, "good.mp4", 1)
    mixed.update(uri="black.mp4", start_s=2.5, end_s=3.6, clip_id="mixed")  # 0.55 of it is black
    assert fallen(files, sources, clips)[("black", "recall")] == (1, 2)
    mixed.update(end_s=3.3)  # 0.375: neither
    assert ("black", "recall") not in fallen(files, sources, clips)


def test_the_rest_of_a_flashing_shot_is_left_out_and_a_splinter_of_one_is_a_mistake(files):
    sources, clips = perfect(files)
    flashing = files[5]
    clips.remove(at(clips, "flashing.mp4", 1))
    windows = [clip_row(flashing, 1, 3.0, 5.0, "flashing"), clip_row(flashing, 1, 5.0, 6.0, "duration")]
    assert fallen(files, sources, [*clips, *windows]) == {}
    splinters = [clip_row(flashing, 1 + i, 3 + i, 4 + i, "duration") for i in range(3)]
    assert fallen(files, sources, [*clips, *splinters]) == {
        ("flashing", "recall"): (0, 3),
        ("cuts", "precision"): (6, 8),
    }


def test_what_is_rejected_anyway_need_not_be_measured(files):
    sources, clips = perfect(files)
    keep(at(clips, "blurred.mp4"))
    at(clips, "blurred.mp4")["blur"] = float("nan")
    assert fallen(files, sources, clips) == {("blur", "recall"): (0, 1)}
    reject(at(clips, "blurred.mp4"), "duration")
    assert graded(files, sources, clips)["blur"]["positives"] == 0


def test_text_is_not_graded_when_nobody_looked_for_it(files):
    sources, clips = perfect(files)
    for clip in clips:
        clip["text_area"] = float("nan")
    check = graded(files, sources, clips)["text"]
    assert (check["state"], check["positives"], check["recall"]) == ("not measured", 0, None)
    assert grade_rows(sources, clips, files)["holds"]


def test_a_cut_counts_within_one_frame_and_windows_of_a_long_shot_are_no_cuts(files):
    sources, clips = perfect(files)
    second = at(clips, "good.mp4", 1)
    second["start_frame"] = 31
    assert fallen(files, sources, clips) == {}
    second["start_frame"] = 32
    assert fallen(files, sources, clips) == {("cuts", "recall"): (5, 6), ("cuts", "precision"): (5, 6)}
    second["start_frame"], second["shot"] = 30, 0
    assert fallen(files, sources, clips) == {("cuts", "recall"): (5, 6)}
    second["shot"] = 1
    clips.append(clip_row(files[0], 1, 4.5, 6.0))
    assert fallen(files, sources, clips) == {}
    clips[-1]["shot"] = 2
    assert fallen(files, sources, clips) == {("cuts", "precision"): (6, 7)}


def test_a_dissolve_is_found_by_its_transition_and_its_edges_are_no_false_cuts(files):
    file = truth_file("dissolve.mp4", ("normal", 0, 3), ("normal", 3, 6), kind="dissolve")
    file["cuts"] = []
    file["transitions"] = [{"start_frame": 24, "end_frame": 30, "start_s": 2.4, "end_s": 3.0}]
    files.append(file)
    sources, clips = perfect(files)
    assert fallen(files, sources, clips) == {("transition", "recall"): (0, 1)}
    clips.append(clip_row(file, 1, 2.5, 3.0, "transition"))
    assert fallen(files, sources, clips) == {}
    clips.append(clip_row(files[0], 1, 5.0, 5.5, "transition"))
    assert fallen(files, sources, clips) == {("transition", "precision"): (1, 2)}


def test_bars_are_found_by_the_box_and_a_good_picture_may_lose_three_percent(files):
    sources, clips = perfect(files)
    at(clips, "good.mp4")["content"] = [2, 0, 156, 100]
    at(clips, "bars.mp4")["content"] = [0, 14, 160, 72]
    at(clips, "black.mp4", 1)["content"] = [0, 40, 160, 20]  # bars on black cannot be seen
    assert fallen(files, sources, clips) == {}
    at(clips, "good.mp4")["content"] = [0, 0, 150, 100]
    assert fallen(files, sources, clips) == {("letterbox", "precision"): (2, 3)}
    at(clips, "bars.mp4")["content"] = [0, 0, 160, 100]
    assert fallen(files, sources, clips) == {("letterbox", "recall"): (1, 2), ("letterbox", "precision"): (1, 2)}
    at(clips, "bars.mp4")["content"] = [0, 12, 120, 76]  # a wrong box is both
    assert fallen(files, sources, clips) == {("letterbox", "recall"): (1, 2), ("letterbox", "precision"): (1, 3)}


def test_damaged_and_foreign_files_are_told_apart_and_half_a_file_is_accepted_with_a_warning(files):
    sources, clips = perfect(files)
    at(sources, "no_index.mp4")["reason"] = "not_media"
    assert fallen(files, sources, clips) == {("corrupt", "recall"): (0, 1), ("not_media", "precision"): (1, 2)}
    sources, clips = perfect(files)
    at(sources, "partial.mp4")["detail"] = ""
    assert fallen(files, sources, clips) == {("partial", "recall"): (0, 1)}
    at(sources, "partial.mp4").update(status="rejected", reason="corrupt")
    assert fallen(files, sources, clips) == {("partial", "recall"): (0, 1)}


def test_a_file_that_vanished_or_crashed_the_worker_is_lost(files):
    sources, clips = perfect(files)
    at(sources, "static.mp4").update(status="rejected", reason="crashed")
    sources.remove(at(sources, "photo.png"))
    facts = grade_rows(sources, clips, files)
    assert (facts["lost"], facts["holds"]) == (["photo.png", "static.mp4"], False)


def test_of_equal_files_one_is_kept_and_it_may_be_the_copy(files):
    sources, clips = perfect(files)
    original, copy = at(sources, "good.mp4"), at(sources, "again.mp4")
    original.update(reason="exact_duplicate", status="rejected", duplicate_of=copy["source_id"])
    assert fallen(files, sources, clips)[("exact_duplicate", "precision")] == (0, 2)  # both: nothing would be left
    copy.update(reason="", status="ok", duplicate_of="")
    assert ("exact_duplicate", "recall") not in fallen(files, sources, clips)
    original.update(reason="", status="ok", duplicate_of="")
    assert fallen(files, sources, clips)[("exact_duplicate", "recall")] == (0, 1)


def test_an_exact_duplicate_of_other_bytes_is_a_mistake(files):
    sources, clips = perfect(files)
    text = at(sources, "text.mp4")
    text.update(reason="exact_duplicate", status="rejected", duplicate_of="id of good.mp4")
    clips.remove(at(clips, "text.mp4"))
    text["source_id"] = "id of good.mp4"
    assert fallen(files, sources, clips) == {("exact_duplicate", "precision"): (1, 2)}
    text["duplicate_of"] = "id of a file that never was"
    assert fallen(files, sources, clips) == {("exact_duplicate", "precision"): (1, 2)}


def test_a_copy_is_found_when_nothing_of_it_is_kept_twice(files):
    sources, clips = perfect(files)
    keep(at(clips, "later.mp4"))  # 1-3 s of the original, of which 0-3 s is kept
    assert fallen(files, sources, clips) == {("perceptual_duplicate", "recall"): (0, 1)}
    reject(at(clips, "good.mp4"), "perceptual_duplicate")  # the original's may go instead
    at(clips, "good.mp4")["duplicate_of"] = at(clips, "later.mp4")["clip_id"]
    assert fallen(files, sources, clips) == {}
    at(clips, "good.mp4").update(start_s=0.0, end_s=1.9, start_frame=0)  # 0.9 s of 1.9 s: less than half
    keep(at(clips, "good.mp4"))
    assert fallen(files, sources, clips) == {}


def test_a_copy_that_other_filters_took_is_no_case(files):
    sources, clips = perfect(files)
    for place in (0, 1):
        reject(at(clips, "later.mp4", place), "resolution")
    check = graded(files, sources, clips)["perceptual_duplicate"]
    assert (check["positives"], check["predicted"], check["state"]) == (0, 0, "nothing to grade")


def test_a_whole_source_may_be_the_duplicate(files):
    sources, clips = perfect(files)
    clips = [clip for clip in clips if clip["uri"] != "later.mp4"]
    row = at(sources, "later.mp4")
    row.update(reason="perceptual_duplicate", status="rejected", duplicate_of="id of good.mp4")
    check = graded(files, sources, clips)["perceptual_duplicate"]
    assert (check["precision"]["value"], check["recall"]["value"], check["recall"]["n"]) == (1, 1, 1)
    row["duplicate_of"] = "id of text.mp4"
    assert fallen(files, sources, clips) == {("perceptual_duplicate", "precision"): (0, 1)}


def test_a_duplicate_names_what_shows_the_same_moment(files):
    sources, clips = perfect(files)
    late = at(clips, "later.mp4", 1)  # 3-6 s of the original
    late["duplicate_of"] = at(clips, "good.mp4", 1)["clip_id"]
    assert fallen(files, sources, clips) == {}
    for other in (at(clips, "good.mp4", 0), at(clips, "text.mp4"), late):
        late["duplicate_of"] = other["clip_id"]
        assert fallen(files, sources, clips) == {("perceptual_duplicate", "precision"): (1, 2)}


@pytest.mark.parametrize(("repeats", "right"), [(2.0, True), (0.0, True), (3.0, False), (None, False)])
def test_another_moment_of_a_scene_is_the_same_when_the_scene_repeats(repeats, right):
    files = [truth_file("loop.mp4", ("normal", 0, 6), repeats=repeats)]
    sources, _ = perfect(files)
    first = clip_row(files[0], 0, 0.0, 1.0)
    again = clip_row(files[0], 0, 4.0, 5.0, "perceptual_duplicate", duplicate_of=first["clip_id"])
    check = graded(files, sources, [first, again])["perceptual_duplicate"]
    assert check["precision"]["value"] == float(right)


def test_the_ledger_on_disk_is_graded_wherever_below_the_input_the_corpus_lies(files, tmp_path):
    sources, clips = perfect(files)
    keep(at(clips, "static.mp4"))
    at(clips, "static.mp4")["static"] = 0.25
    for row in [*sources, *clips]:
        row["uri"] = f"raw/synth/{row['uri']}"
    foreign = {**sources[0], "uri": "raw/real/good.mp4", "source_id": "another"}
    for name, rows, schema in (("sources", [*sources, foreign], SOURCE_SCHEMA), ("clips", clips, CLIP_SCHEMA)):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / name / "part-00000.parquet")
    (tmp_path / "truth.json").write_text(json.dumps({"schema_version": 2, "files": files}))
    facts = grade(tmp_path, tmp_path / "truth.json")
    assert facts["files"] == len(files)
    assert facts["short"] == ["static: recall 0.000 (0 of 1) is under 0.95"]
    json.dumps(facts, allow_nan=False)
    text = grade_text(facts)
    assert "missed  raw/synth/static.mp4  0.00-3.00 s  value 0.25" in text
    assert "falls short:\n  static: recall 0.000 (0 of 1) is under 0.95" in text


def test_the_worst_mistakes_come_first(files):
    files = [truth_file(f"{value}.mp4", ("static", 0, 3)) for value in range(9)]
    sources, clips = perfect(files)
    for value, clip in zip((3, 7, 1, 8, 2, 6, 0, 5, 4), clips, strict=True):
        keep(clip)
        clip["static"] = value / 10
    mistakes = graded(files, sources, clips)["static"]["mistakes"]
    assert [mistake["value"] for mistake in mistakes] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_another_corpus_and_an_older_truth_are_refused(files, tmp_path):
    with pytest.raises(UserError, match="another corpus"):
        grade_rows([{"uri": "holiday.mp4"}], [], files)
    (tmp_path / "truth.json").write_text(json.dumps({"schema_version": 1, "files": []}))
    with pytest.raises(UserError, match="version 1, not 2"):
        read_truth(tmp_path / "truth.json")
    (tmp_path / "truth.json").write_text("{}")
    with pytest.raises(UserError, match=r"no truth\.json"):
        read_truth(tmp_path / "truth.json")
