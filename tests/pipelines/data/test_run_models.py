"""Whole runs with models that are small and real: scores, captions and transitions, asked once and kept."""

import json
import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont

from kineograph.media.encode import write_mp4
from kineograph.models.torchvision_shim import ensure_torchvision_importable
from kineograph.store.shards import ShardReader
from pipelines.data.captions.binding import caption_hash
from pipelines.data.captions.model import folder_digest
from pipelines.data.config import CurateConfig
from pipelines.data.ledger import read_ledger
from pipelines.data.pipeline import curate, decide
from pipelines.data.scoring import read_scores
from pipelines.data.state import load_config

pytestmark = pytest.mark.slow


def load(name, path):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_here = Path(__file__)
_vlm = load("tiny_vlm_for_runs", _here.parent / "captions" / "conftest.py")
tokenizer, llava = _vlm.tokenizer, _vlm.llava
mutate = load("mutate_for_model_runs", _here.parents[2] / "kineograph" / "media" / "mutate.py")

WIDTH, HEIGHT = 256, 192
TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}


def save_vit(folder, seed):
    import torch
    import transformers

    torch.manual_seed(seed)
    names = {0: "dull", 1: "watermark"}
    config = transformers.ViTConfig(**TINY_VIT, id2label=names, label2id={v: k for k, v in names.items()})
    transformers.ViTForImageClassification(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with clip/, an aesthetic head for it, and vit/."""
    ensure_torchvision_importable()
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    (folder / "tiny-clip-of-runs.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip-of-runs.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip-of-runs")
    for parameter in model.visual.parameters():
        parameter.data.mul_(4)  # fresh weights see little difference between pictures
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP}))
    save_file(model.state_dict(), folder / "clip" / "open_clip_model.safetensors")
    save_file({"weight": torch.randn(1, 24), "bias": torch.tensor([5.0])}, folder / "head.safetensors")
    save_vit(folder / "vit", 0)
    return folder


def real(name, start, end):
    return list(mutate.real_frames(name, end, WIDTH, HEIGHT)[start:end])


def with_text(frames, size=26, top=140):
    lettered = []
    for frame in frames:
        image = Image.fromarray(frame)
        ImageDraw.Draw(image).text((12, top), "subscribe now", (255, 255, 255), ImageFont.load_default(size))
        lettered.append(np.asarray(image))
    return lettered


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Five shots of real footage; bunny and street have a caption, titles has text burnt in."""
    folder = tmp_path_factory.mktemp("shots")
    shots = {
        "bunny": real("bigbuckbunny", 50, 75),
        "street": real("bikes", 80, 105),
        "crossing": real("bikes", 140, 163),
        "phone": real("carphone_pristine", 0, 25),
        "titles": with_text(real("bigbuckbunny", 90, 115)),
    }
    for name, frames in shots.items():
        write_mp4(folder / f"{name}.mp4", frames, 10, crf=12)
    (folder / "bunny.txt").write_text("a rabbit in a meadow")
    (folder / "street.txt").write_text("people ride bikes")
    return folder


@pytest.fixture(scope="module")
def scored(raw, weights, llava, ray_of_two, tmp_path_factory):
    """The run with every model, and a filter on burnt-in text alone."""
    config = CurateConfig.model_validate(
        {
            "samples": {"side": 256, "per_second": 2.0},
            "clips": {"min_seconds": 2.0, "max_seconds": 4.0},
            "scores": {
                "text_area": {},
                "safety": {},
                "learned": {"model": str(weights / "vit"), "label": "watermark"},
                "clip": {
                    "model": f"local-dir:{weights / 'clip'}",
                    "aesthetic_head": str(weights / "head.safetensors"),
                },
            },
            "filters": {"text": {"max": 0.02}},
            "captions": {"model": {"model": str(llava), "prompt": "describe this " * 30, "max_new_tokens": 6}},
            "buckets": {"sizes": ["24x32x8"], "fps": 4.0},
            "workers": 2,
        }
    )
    run = tmp_path_factory.mktemp("scored") / "run"
    return run, curate(config, raw, run)


@pytest.fixture
def run(scored):
    """The run as it was first decided; a test may decide it anew."""
    folder, summary = scored
    yield folder
    assert decide(folder, [*NO_THRESHOLDS, "filters.text.max=0.02"])["digest"] == summary["digest"]


NO_THRESHOLDS = [
    f"filters.{name}=null"
    for name in ("unsafe.max", "aesthetic.min", "learned.min", "caption_match.min", "text.max", "motion.min")
] + ["duplicates.semantic.enabled=false"]


def clips_of(run):
    """Name -> its only clip."""
    return {Path(clip["uri"]).stem: clip for clip in read_ledger(run)[1]}


def kept(run):
    return {name for name, clip in clips_of(run).items() if clip["decision"] == "keep"}


def asked(run, model):
    """How many clips were scored by each set of weights of ``model``, a sorted list."""
    folders = (run / "work" / "scores").glob(f"{model}-*")
    return sorted(sum(pq.read_metadata(f).num_rows for f in folder.glob("*.parquet")) for folder in folders)


def test_every_model_says_something_of_every_clip_that_passes_the_one_before(scored):
    clips = clips_of(scored[0])
    titles = clips.pop("titles")
    assert (titles["reason"], titles["failed"]) == ("text", ["text"])
    assert titles["value"] == pytest.approx(titles["text_area"])
    assert titles["value"] > titles["threshold"]
    assert titles["threshold"] == pytest.approx(0.02)
    assert all(math.isnan(titles[name]) for name in ("unsafe", "learned", "aesthetic", "caption_match"))
    for clip in clips.values():
        assert clip["decision"] == "keep", clip
        assert clip["text_area"] <= 0.02
        assert 0 <= clip["unsafe"] <= 1
        assert 0 < clip["learned"] < 1
        assert 1 < clip["aesthetic"] < 9
        assert -1 <= clip["caption_match"] <= 1
    for name in ("learned", "aesthetic", "caption_match"):
        assert len({clip[name] for clip in clips.values()}) == 4
    run = scored[0]
    assert [asked(run, name) for name in ("text_area", "safety", "learned", "clip")] == [[5], [4], [4], [4]]
    assert (asked(run, "captions"), asked(run, "match")) == ([2], [4])


def test_a_caption_says_whose_it_is_and_its_hash_binds_it_to_the_clip(scored, llava):
    clips = clips_of(scored[0])
    sources = {name: clip["caption_source"] for name, clip in clips.items()}
    assert sources == {"bunny": "sidecar", "street": "sidecar", "crossing": "model", "phone": "model", "titles": ""}
    for name in ("crossing", "phone"):
        assert clips[name]["caption"]
        assert clips[name]["caption_model"] == f"tiny-llava@{folder_digest(llava)[:16]}"
    for clip in clips.values():
        if clip["caption"]:
            parts = clip["clip_id"], clip["caption"], clip["caption_source"], clip["caption_model"]
            assert clip["caption_hash"] == caption_hash(*parts)
    reader = ShardReader(scored[0])
    rows = reader.read([entry.address for entry in reader.index()])
    assert {(row["source_uri"], row["caption"], row["caption_source"]) for row in rows} == {
        (clip["uri"], clip["caption"], clip["caption_source"]) for clip in clips.values() if clip["decision"] == "keep"
    }


@pytest.mark.parametrize(
    ("column", "key", "reason"),
    [
        ("aesthetic", "aesthetic.min", "aesthetic"),
        ("learned", "learned.min", "learned"),
        ("caption_match", "caption_match.min", "caption_match"),
        ("unsafe", "unsafe.max", "unsafe"),
    ],
)
def test_a_threshold_on_a_score_parts_the_clips_and_nothing_is_scored_again(run, column, key, reason):
    before = {path: path.stat().st_mtime_ns for path in (run / "work" / "scores").rglob("*")}
    values = {name: clip[column] for name, clip in clips_of(run).items() if name != "titles"}
    least, *_, most = sorted(values.values())
    threshold = (least + most) / 2
    decide(run, [f"filters.{key}={threshold}"])
    wrong = {n for n, value in values.items() if (value > threshold if key.endswith("max") else value < threshold)}
    assert kept(run) == set(values) - wrong
    assert wrong
    for name in wrong:
        clip = clips_of(run)[name]
        assert (clip["reason"], clip["value"]) == (reason, pytest.approx(values[name]))
        assert clip["threshold"] == pytest.approx(threshold)
    assert {path: path.stat().st_mtime_ns for path in (run / "work" / "scores").rglob("*")} == before


def test_the_drawn_rabbit_is_what_the_safety_model_takes_it_for(scored):
    unsafe = {name: clip["unsafe"] for name, clip in clips_of(scored[0]).items()}
    assert unsafe["street"] == 0
    assert unsafe["bunny"] > 0.2


def test_clips_alike_by_their_embeddings_are_one(run):
    (folder,) = (run / "work" / "scores").glob("clip-*")
    embeddings = {key.partition(":")[0]: row["embedding"] for key, row in read_scores(folder).items()}
    cosines = sorted(((float(embeddings[a] @ embeddings[b]), a, b) for a, b in combinations(sorted(embeddings), 2)))
    (second, *_), (best, one, other) = cosines[-2:]
    decide(run, ["duplicates.semantic.enabled=true", f"duplicates.semantic.min_cosine={(second + best) / 2}"])
    (lost,) = [clip for clip in clips_of(run).values() if clip["reason"] == "semantic_duplicate"]
    assert {lost["clip_id"], lost["duplicate_of"]} == {one, other}
    assert lost["value"] == pytest.approx(best, abs=1e-6)


def test_a_loosened_threshold_has_only_those_scored_that_it_lets_in(run):
    decide(run, ["filters.text.max=null"])
    assert kept(run) == {"bunny", "street", "crossing", "phone", "titles"}
    assert [asked(run, name) for name in ("text_area", "safety", "learned", "clip")] == [[5], [5], [5], [5]]
    assert (asked(run, "captions"), asked(run, "match")) == ([3], [5])


def test_other_weights_in_the_same_file_are_another_model(run, weights):
    first = {name: clip["learned"] for name, clip in clips_of(run).items()}
    old = (weights / "vit" / "model.safetensors").read_bytes()
    save_vit(weights / "vit", 1)
    decide(run)
    second = {name: clip["learned"] for name, clip in clips_of(run).items()}
    (weights / "vit" / "model.safetensors").write_bytes(old)
    assert all(first[name] != second[name] for name in ("bunny", "street", "crossing", "phone"))
    assert asked(run, "learned")[0] == 4
    assert len(asked(run, "learned")) == 2
    assert len(asked(run, "clip")) == 1


def test_a_new_caption_is_matched_anew_and_the_picture_is_not_looked_at_again(run, raw):
    scored, first = asked(run, "clip"), clips_of(run)["bunny"]
    (raw / "bunny.txt").write_text("grey stones beside a river")
    config = load_config(run)
    curate(config, raw, run)
    second = clips_of(run)["bunny"]
    (raw / "bunny.txt").write_text("a rabbit in a meadow")
    curate(config, raw, run)
    assert (second["caption"], second["decision"]) == ("grey stones beside a river", "keep")
    assert second["caption_hash"] != first["caption_hash"]
    assert second["caption_match"] != first["caption_match"] == clips_of(run)["bunny"]["caption_match"]
    assert asked(run, "clip") == scored


def test_without_a_model_captions_are_put_into_words_from_what_was_measured(run, llava):
    decide(run, ["captions.model=null", "captions.measured=true"])
    clips = clips_of(run)
    assert clips["bunny"]["caption_source"] == "sidecar"
    for name in ("crossing", "phone"):
        clip = clips[name]
        assert (clip["caption_source"], clip["caption_model"]) == ("measured", "")
        assert "video" in clip["caption"]
        assert clip["caption_hash"] == caption_hash(clip["clip_id"], clip["caption"], "measured", "")
    model = {"model": str(llava), "prompt": "describe this " * 30, "max_new_tokens": 6}
    decide(run, [f"captions.model={json.dumps(model)}", "captions.measured=false"])
    assert len(asked(run, "captions")) == 1


def test_a_clip_that_a_model_rejects_does_not_take_its_copy_with_it(ray_of_two, tmp_path):
    """The larger copy has text burnt in; the smaller, clean one stands in for it."""
    clean = real("bigbuckbunny", 0, 25)
    small = [np.asarray(Image.fromarray(frame).resize((192, 144), Image.Resampling.LANCZOS)) for frame in clean]
    write_mp4(tmp_path / "raw" / "clean.mp4", small, 10, crf=12)
    write_mp4(tmp_path / "raw" / "lettered.mp4", with_text(clean, 12, 170), 10, crf=12)
    config = CurateConfig.model_validate(
        {
            "samples": {"side": 256, "per_second": 2.0},
            "scores": {"text_area": {}},
            "captions": {"require": False},
            "buckets": {"sizes": ["24x32x8"], "fps": 4.0},
        }
    )
    curate(config, tmp_path / "raw", tmp_path / "run")
    fates = {row["uri"]: row["reason"] for row in read_ledger(tmp_path / "run")[0]}
    assert fates == {"clean.mp4": "perceptual_duplicate", "lettered.mp4": ""}
    decide(tmp_path / "run", ["filters.text.max=0.01"])
    fates = {row["uri"]: row["reason"] for row in read_ledger(tmp_path / "run")[0]}
    assert fates == {"clean.mp4": "", "lettered.mp4": ""}
    clips = clips_of(tmp_path / "run")
    assert (clips["clean"]["decision"], clips["lettered"]["reason"]) == ("keep", "text")


def test_a_dissolve_is_a_row_of_its_own_and_in_no_clip(ray_of_two, tmp_path):
    (tmp_path / "raw").mkdir()
    bunny, street = (np.stack(mutate.real_frames(*part)) for part in (("bigbuckbunny", 48), ("bikes", 140)))
    street = street[80:128]
    share = (np.arange(1, 13) / 13)[:, None, None, None]
    mixed = (bunny[36:] * (1 - share) + street[:12] * share).round().astype(np.uint8)
    write_mp4(tmp_path / "raw" / "a.mp4", np.concatenate([bunny[:36], mixed, street[12:]]), 24, crf=12)
    config = CurateConfig.model_validate(
        {
            "transitions": {},
            "clips": {"min_seconds": 1.0, "max_seconds": 4.0},
            "captions": {"require": False},
            "buckets": {"sizes": ["24x40x4"], "fps": 4.0},
        }
    )
    summary = curate(config, tmp_path / "raw", tmp_path / "run")
    clips = read_ledger(tmp_path / "run")[1]
    assert [clip["reason"] for clip in clips] == ["", "transition", ""]
    start, end = clips[1]["start_frame"], clips[1]["end_frame"]
    assert abs(start - 36) <= 2
    assert abs(end - 48) <= 3
    assert [(c["start_frame"], c["end_frame"]) for c in clips] == [(0, start), (start, end), (end, 84)]
    reader = ShardReader(tmp_path / "run")
    for row in reader.read([entry.address for entry in reader.index()]):
        assert row["end_s"] <= clips[1]["start_s"] or row["start_s"] >= clips[1]["end_s"]
    lost = summary["totals"]["seconds"]["rejected"]
    assert lost == {"transition": pytest.approx(clips[1]["end_s"] - clips[1]["start_s"])}
