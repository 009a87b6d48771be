"""A made-up ledger of a large run: plausible signals, every reason, thumbnails that are real JPEGs."""

import io
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kineograph.store.schema import Reason
from pipelines.data.report import write_report

FILTERS = {
    "resolution": {"min": 240},
    "aspect": {"min": 0.45, "max": 2.5},
    "fps": {"min": 15},
    "black": {"max": 0.5, "picture": 0.98},
    "static": {"max": 0.9, "level": 2.5},
    "motion": {"min": 0.002, "max": 1.0},
    "blur": {"max": 0.6},
    "flashing": {"max": 3},
    "text": {"max": 0.1},
    "unsafe": {"max": 0.6},
    "aesthetic": {"min": 4.0},
    "learned": {"min": 0.2},
    "caption_match": {"min": 0.18},
}
# reason, column, kind: the checks that look at a signal, in their order.
CHECKS = (
    (Reason.RESOLUTION, "short_side", "resolution", "min"),
    (Reason.ASPECT, "aspect", "aspect", "min"),
    (Reason.ASPECT, "aspect", "aspect", "max"),
    (Reason.FPS, "fps", "fps", "min"),
    (Reason.BLACK, "black", "black", "max"),
    (Reason.STATIC, "static", "static", "max"),
    (Reason.MOTION_LOW, "motion", "motion", "min"),
    (Reason.MOTION_HIGH, "motion", "motion", "max"),
    (Reason.BLUR, "blur", "blur", "max"),
    (Reason.FLASHING, "flashing", "flashing", "max"),
    (Reason.TEXT, "text_area", "text", "max"),
    (Reason.UNSAFE, "unsafe", "unsafe", "max"),
    (Reason.AESTHETIC, "aesthetic", "aesthetic", "min"),
    (Reason.LEARNED, "learned", "learned", "min"),
)
BAD_FILES = (
    (Reason.NOT_MEDIA, "no allowed format: Invalid data found when processing input"),
    (Reason.CORRUPT, "moov atom not found"),
    (Reason.UNREADABLE, "Permission denied"),
    (Reason.TOO_LARGE, "31,204 s are more than limits.seconds 14,400"),
    (Reason.TIMEOUT, "stopped after 600 s"),
    (Reason.CRASHED, "the analysing process died of SIGSEGV"),
    (Reason.FETCH_FAILED, "the server closed the connection"),
)
HOSTILE = '<script>alert(1)</script> "quoted" & <b>bold</b> \' {{ 7 * 7 }}'
SIZES = (
    (1920, 1080),
    (1280, 720),
    (640, 360),
    (1080, 1920),
    (854, 480),
    (320, 240),
    (720, 720),
    (3840, 2160),
    (256, 144),
    (2600, 800),
)
WORDS = (
    "a",
    "man",
    "red",
    "car",
    "drives",
    "slowly",
    "along",
    "the",
    "coast",
    "while",
    "waves",
    "break",
    "on",
    "rocks",
)
STAGES = [
    {"stage": "list", "items": 412, "wall_s": 0.8, "busy_s": 0.8},
    {"stage": "analyse", "items": 405, "wall_s": 1260.4, "busy_s": 9881.0},
    {"stage": "score", "items": 5210, "wall_s": 402.0, "busy_s": 1590.2},
    {"stage": "caption", "items": 3120, "wall_s": 911.7, "busy_s": 3600.9},
    {"stage": "decide", "items": 5210, "wall_s": 1.9, "busy_s": 1.9},
    {"stage": "encode", "items": 380, "wall_s": 690.3, "busy_s": 5390.5},
    {"stage": "write", "items": 9, "wall_s": 44.2, "busy_s": 71.5},
]


@cache
def jpeg(hue, size=(160, 90)):
    """A small picture: a ground of two tones and a disc."""
    y, x = np.mgrid[: size[1], : size[0]]
    disc = ((x - size[0] * (0.3 + 0.4 * (hue % 7) / 7)) ** 2 + (y - size[1] / 2) ** 2) < (size[1] / 4) ** 2
    hsv = np.stack([np.full_like(x, hue * 37 % 256), 120 + y, 90 + x // 2], axis=-1)
    hsv[disc] = (hue * 37 % 256 + 90) % 256, 200, 230
    buffer = io.BytesIO()
    Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def thumbnails(rows):
    return [jpeg(int(row["clip_id"][-4:]) % 64) for row in rows]


def make_sources(rng, count):
    """``count`` good sources, then one or more of every bad kind; duplicates name the first ones."""
    sources = []
    for i in range(count):
        width, height = SIZES[rng.choice(len(SIZES), p=[0.3, 0.2, 0.12, 0.14, 0.08, 0.06, 0.04, 0.03, 0.02, 0.01])]
        fps = float(rng.choice([23.976, 24, 25, 29.97, 30, 50, 60, 12]))
        sources.append(source_row(i, f"crawl/{i % 20:02d}/video {i:05d}.mp4", width, height, fps))
    sources[3]["uri"] = f"crawl/{HOSTILE}.mp4"
    sources[5]["detail"] = "the last 12 frames could not be decoded"
    for j, (reason, detail) in enumerate(BAD_FILES * 3):
        uri = f"crawl/bad/file {j:03d} with a rather long name that goes on and on and on and never seems to end.mp4"
        bad = source_row(count + j, uri, 0, 0, 0.0)
        sources.append({**bad, "status": "rejected", "reason": reason.value, "detail": detail, "codec": ""})
    return sources


def copies(sources):
    """Exact and perceptual duplicates of the first nine sources."""
    for j in range(24):
        kept = sources[j % 9]
        reason = Reason.EXACT_DUPLICATE if j % 3 else Reason.PERCEPTUAL_DUPLICATE
        copy = {**kept, "uri": f"mirror/{j}/{kept['uri']}", "status": "rejected", "reason": reason.value}
        copy["source_id"] = kept["source_id"] if j % 3 else f"copy {j}"
        yield {**copy, "duplicate_of": kept["source_id"], "detail": f"looks the same as {kept['uri']} (distance 2.1)"}


def source_row(number, uri, width, height, fps):
    return {
        "source_id": f"s{number}", "uri": uri, "media_type": "video" if fps else "", "container": "mp4",
        "codec": "h264", "bytes": 10_000_000, "width": width, "height": height, "fps": fps, "frames": 0,
        "seconds": 0.0, "status": "ok", "reason": "", "detail": "", "duplicate_of": "", "labels": "{}",
        "analysis_s": 0.0,
    }  # fmt: skip


def signals(rng, source):
    width, height = source["width"], source["height"]
    bars = 0.75 if rng.random() < 0.08 else 1.0
    content = [0, round(height * (1 - bars) / 2), width, round(height * bars)]
    rare = lambda p, low, high: float(rng.uniform(low, high)) if rng.random() < p else 0.0  # noqa: E731
    return {
        "content": content, "crop": content, "width": width, "height": height, "fps": source["fps"],
        "luma": float(rng.beta(4, 5)), "contrast": float(rng.beta(5, 8)) / 2, "saturation": float(rng.beta(2, 6)),
        "black": rare(0.04, 0, 1), "static": rare(0.15, 0, 1), "motion": float(10 ** rng.normal(-1.4, 0.75)),
        "pan": float(10 ** rng.normal(-2.2, 0.8)), "pan_direction": float(rng.uniform(0, 360)),
        "blur": float(rng.beta(5, 9)), "flashing": float(rng.choice([0] * 90 + [1] * 4 + [2, 2, 3, 3, 4, 6])),
        "text_area": rare(0.3, 0, 0.3) ** 2 * 3, "unsafe": rare(0.006, 0.3, 1) or float(rng.beta(0.6, 9)),
        "aesthetic": float(rng.normal(5.1, 0.6)),
        "learned": float(rng.beta(4, 2)), "caption_match": float(rng.normal(0.26, 0.04)),
    }  # fmt: skip


def failing(row, rng):
    """Every check that ``row`` fails, in order: (reason, value, threshold)."""
    side = min(row["content"][2:])
    values = {**row, "short_side": side, "aspect": row["content"][2] / max(1, row["content"][3])}
    found = []
    for reason, share in ((Reason.OUTSIDE_SPAN, 0.02), (Reason.TRANSITION, 0.03)):
        if rng.random() < share:
            found.append((reason, 0.8, 0.5))
    if row["end_s"] - row["start_s"] < 2:
        found.append((Reason.DURATION, row["end_s"] - row["start_s"], 2.0))
    for reason, column, section, kind in CHECKS:
        limit = FILTERS[section][kind]
        if values[column] < limit if kind == "min" else values[column] > limit:
            found.append((reason, float(values[column]), float(limit)))
    if side < 256:
        found.append((Reason.NO_BUCKET, side, 256.0))
    if not row["caption"] and rng.random() < 0.3:
        found.append((Reason.NO_CAPTION, 0.0, 1.0))
    if row["caption"] and row["caption_match"] < 0.18:
        found.append((Reason.CAPTION_MATCH, row["caption_match"], 0.18))
    if rng.random() < 0.004:
        found.append((Reason.ENCODE_FAILED, 0.0, 1.0))
    return found


def bucket_of(row):
    ratio = row["content"][2] / row["content"][3]
    shape = "256x448" if ratio > 1.3 else "448x256" if ratio < 0.75 else "256x256"
    return f"{shape}x{33 if row['end_s'] - row['start_s'] > 4.2 else 17}"


def caption(rng):
    origin = str(rng.choice(["sidecar", "manifest", "model", "measured", ""], p=[0.3, 0.1, 0.4, 0.12, 0.08]))
    text = " ".join(rng.choice(WORDS, rng.integers(4, 30))) if origin else ""
    return {"caption": text, "caption_source": origin, "caption_model": "some-vlm/2b" if origin == "model" else ""}


def make_clips(rng, sources, per_source):
    clips = []
    for source in sources:
        if source["reason"]:
            continue
        at = 0.0
        for shot in range(int(rng.integers(1, 2 * per_source))):
            end = at + float(min(10.0, rng.gamma(3, 1.6) + 0.3))
            row = {
                "clip_id": f"c{len(clips):06d}", "source_id": source["source_id"], "uri": source["uri"],
                "media_type": "video", "shot": shot, "start_s": at, "end_s": end, "start_frame": 0, "end_frame": 1,
                **signals(rng, source), **caption(rng), "caption_hash": "", "labels": "{}", "duplicate_of": "",
            }  # fmt: skip
            found = failing(row, rng)
            kept = [clip for clip in clips[-40:] if clip["decision"] == "keep"]
            if not found and kept and rng.random() < 0.08:
                row["duplicate_of"] = kept[int(rng.integers(len(kept))) // 8 * 8]["clip_id"]
                semantic = rng.random() < 0.4
                near = float(rng.uniform(0.95, 1) if semantic else rng.uniform(0, 10))
                found = [
                    (Reason.SEMANTIC_DUPLICATE, near, 0.95) if semantic else (Reason.PERCEPTUAL_DUPLICATE, near, 10)
                ]
            clips.append(decided(row, found))
            at = end
        source["seconds"], source["frames"] = at, round(at * source["fps"])
        source["analysis_s"] = at / float(rng.uniform(8, 40)) * source["width"] * source["height"] / 1e6
    return clips


def decided(row, found):
    reason, value, threshold = found[0] if found else ("", float("nan"), float("nan"))
    bucket = "" if found else bucket_of(row)
    return {
        **row,
        "decision": "reject" if found else "keep",
        "reason": reason.value if found else "",
        "failed": list(dict.fromkeys(entry[0].value for entry in found)),
        "value": value,
        "threshold": threshold,
        "bucket": bucket,
        "used_s": min(int(bucket.split("x")[2]) / 8, row["end_s"] - row["start_s"]) if bucket else 0.0,
    }


def totals(sources, clips):
    """Counts and seconds as the ledger adds them up."""
    kept = [clip for clip in clips if clip["decision"] == "keep"]
    rejected = Counter()
    for row in [*sources, *clips]:
        if row["reason"]:
            rejected[row["reason"]] += row["seconds"] if "seconds" in row else row["end_s"] - row["start_s"]
    return {
        "sources": len(sources),
        "sources_ok": sum(source["status"] == "ok" for source in sources),
        "sources_rejected": dict(Counter(s["reason"] for s in sources if s["reason"])),
        "frames": sum(source["frames"] for source in sources),
        "clips": len(clips),
        "clips_kept": len(kept),
        "clips_rejected": dict(Counter(c["reason"] for c in clips if c["reason"])),
        "buckets": dict(Counter(clip["bucket"] for clip in kept)),
        "seconds": {
            "input": sum(source["seconds"] for source in sources),
            "kept": sum(clip["used_s"] for clip in kept),
            "unused": sum(clip["end_s"] - clip["start_s"] - clip["used_s"] for clip in kept),
            "rejected": dict(rejected),
        },
    }


def make_ledger(sources=380, per_source=14, seed=0):
    """(summary, sources, clips): some ``sources * per_source`` clips."""
    rng = np.random.default_rng(seed)
    rows = make_sources(rng, sources)
    clips = make_clips(rng, rows, per_source)
    rows = [*rows, *copies(rows)]
    for clip in clips[:8]:
        clip.update(caption=HOSTILE, caption_source="sidecar")
    summary = {"run": "runs/crawl", "digest": "9f3c" * 16, "totals": totals(rows, clips), "wall_s": 3312.4}
    return summary, rows, clips


@pytest.fixture(scope="session")
def ledger():
    """A large run: summary, sources, clips (without thumbnails), and what else write_report takes."""
    summary, sources, clips = make_ledger()
    return SimpleNamespace(
        summary=summary,
        sources=sources,
        clips=clips,
        more={"filters": FILTERS, "stages": STAGES, "thumbnails": thumbnails},
        hostile=HOSTILE,
        jpeg=jpeg,
    )


@pytest.fixture(scope="session")
def page(ledger, tmp_path_factory):
    """The report of the large run."""
    run = tmp_path_factory.mktemp("run")
    return write_report(run, ledger.summary, ledger.sources, ledger.clips, **ledger.more).read_text("utf-8")


@pytest.fixture
def page_of(tmp_path):
    """A function: the report of these sources and clips."""

    def write(sources, clips, **more):
        summary = {"run": "run", "digest": "", "totals": totals(sources, clips), "wall_s": None}
        return write_report(tmp_path, summary, sources, clips, **more).read_text("utf-8")

    return write


@pytest.fixture
def clip():
    """A function: a row of the clips table, kept unless ``failed`` says (reason, value, threshold)."""

    def make(number=0, failed=(), **columns):
        row = {
            "clip_id": f"c{number:06d}", "source_id": "s0", "uri": "videos/a.mp4", "media_type": "video", "shot": 0,
            "start_s": 2.0 * number, "end_s": 2.0 * number + 4.5, "content": [0, 0, 640, 360], "width": 640,
            "height": 360, "fps": 25.0, "caption": "", "caption_source": "", "duplicate_of": "",
        }  # fmt: skip
        return decided({**row, **columns}, list(failed))

    return make


@pytest.fixture
def source():
    """A row of the sources table."""
    return source_row(0, "videos/a.mp4", 640, 360, 25.0)
