"""What people look at: contact sheets, videos, and one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from kineograph.media.encode import contact_sheet, write_mp4, write_png
from kineograph.progress import duration
from kineograph.store.commit import write_text
from kineograph.synth.oracle import expected
from pipelines.eval.config import Report

REPORT_NAME = "report.html"

MEANING = {
    "colour_accuracy": "videos in the colour of their prompt",
    "shape_accuracy": "videos with the shape of their prompt",
    "direction_accuracy": "videos that move as their prompt says",
    "flicker": "VBench temporal flickering; 1 is a still",
    "validation_loss": "flow loss on held-out clips; less is better",
    "oracle_colour_accuracy": "colours that the oracle tells right on rendered truth",
    "oracle_shape_accuracy": "shapes that the oracle tells right on rendered truth",
    "oracle_direction_accuracy": "directions that the oracle tells right on rendered truth",
    "oracle_flicker": "flickering of rendered truth, to compare with",
}

Row = dict[str, Any]


def write_pictures(
    out: Path, config: Report, samples: Sequence[Row], videos: np.ndarray, fps: float
) -> tuple[list[Path], list[Path]]:
    """Commit the contact sheets, by prompt, and the first videos as mp4; returns their paths.

    ``samples`` (prompt, seed and grade of each) go with ``videos``, uint8 (N, T, H, W, 3).
    """
    order = sorted(range(len(samples)), key=lambda i: (samples[i]["prompt"], i))
    pages = [order[start : start + config.rows] for start in range(0, len(order), config.rows)]
    sheets = []
    for number, page in enumerate(pages[: config.sheets]):
        sheet = contact_sheet(
            [videos[i] for i in page], [_label(samples[i]) for i in page], columns_frames=config.frames
        )
        sheets.append(out / "sheets" / f"sheet-{number:02d}.png")
        write_png(sheets[-1], sheet)
    paths = []
    for place in range(min(config.videos, len(samples))):
        paths.append(out / "videos" / f"sample-{place:03d}.mp4")
        write_mp4(paths[-1], videos[place], fps, metadata={"title": samples[place]["prompt"]})
    return sheets, paths


def _label(sample: Row) -> str:
    wrong = [aspect for aspect in ("colour", "shape", "direction") if sample[aspect] is False]
    return f"{sample['prompt']} (not: {', '.join(wrong)})" if wrong else str(sample["prompt"])


def write_report(out: Path, metrics: Row, sheets: Sequence[Path]) -> Path:
    """Commit OUT/report.html from what metrics.json holds, with the sheets inside it; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(time=_time, value=_value, label=lambda name: str(name).replace("_", " "))
    page = environment.get_template(REPORT_NAME).render(
        **{key: value for key, value in metrics.items() if key != "samples"},
        tables=_tables(metrics["metrics"]),
        sheets=[_data_uri(path) for path in sheets],
        videos=len(metrics["samples"]),
        shown=_shown(metrics["samples"]),
    )
    write_text(out / REPORT_NAME, page)
    return out / REPORT_NAME


def _tables(scores: Sequence[Row]) -> list[Row]:
    """The scores of the model and those of its examiner, each with its place on a bar from 0 to 1."""
    rows = [{**score, "meaning": MEANING.get(score["name"], ""), "bar": _bar(score)} for score in scores]
    parts = [
        ("The model", [row for row in rows if not row["name"].startswith("oracle_")]),
        ("The oracle, on rendered truth", [row for row in rows if row["name"].startswith("oracle_")]),
    ]
    return [{"title": title, "rows": part} for title, part in parts if part]


def _bar(score: Row) -> Row | None:
    """Percentages for the bar of a score that lies in 0..1 and has a chance level to stand against."""
    if score["chance"] is None:
        return None
    return {
        "value": 100 * score["value"],
        "low": 100 * score["ci_low"],
        "width": 100 * (score["ci_high"] - score["ci_low"]),
        "chance": 100 * score["chance"],
    }


def _shown(samples: Sequence[Row]) -> list[Row]:
    """Per aspect and word: how many of the prompts that ask for it were obeyed, e.g. left 9 of 16."""
    tallies: dict[tuple[str, str], list[bool]] = {}
    for sample in samples:
        demands = expected(sample["prompt"])
        for aspect in ("colour", "shape", "direction"):
            word = getattr(demands[0], aspect) if demands else None
            if word is not None and sample[aspect] is not None:
                tallies.setdefault((aspect, word), []).append(sample[aspect])
    return [
        {"word": word, "right": sum(hits), "n": len(hits), "share": 100 * sum(hits) / len(hits)}
        for (_, word), hits in sorted(tallies.items())  # colour, direction, shape
    ]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _value(value: float) -> str:
    return f"{value:.3f}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
