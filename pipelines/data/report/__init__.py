"""The report of a curation run: one HTML file that needs nothing beside it, for a person to read at a glance."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from kineograph.store.commit import write_text
from pipelines.data.report import words
from pipelines.data.report.columns import Clips
from pipelines.data.report.facts import page_facts
from pipelines.data.report.pictures import Thumbnails
from pipelines.data.report.words import Row, losses

__all__ = ["REPORT_NAME", "losses", "write_report"]

REPORT_NAME = "report.html"


def write_report(
    run: Path,
    summary: Row,
    sources: list[Row],
    clips: list[Row],
    *,
    filters: Row | None = None,
    stages: list[Row] | None = None,
    thumbnails: Thumbnails | None = None,
) -> Path:
    """Commit RUN/report.html; returns its path.

    ``summary`` has run, digest ("" when nothing was kept), totals (of the ledger) and wall_s (or None).
    ``sources`` and ``clips`` are rows of the ledger; where clips come without their thumbnail, ``thumbnails``
    gives the JPEGs of the few (some hundred) rows that are shown, in their order. ``filters`` is that section of
    the recipe, for the thresholds in the histograms. ``stages`` are {stage, items, wall_s, busy_s} in order.
    Same rows, same bytes.
    """
    facts, album = page_facts(summary, sources, Clips.of(clips), filters, stages)
    page = _environment().get_template("page.html").render(**facts, pictures=album.pictures(thumbnails))
    # A file name may hold half a surrogate pair, which UTF-8 cannot.
    write_text(run / REPORT_NAME, page.encode("utf-8", "backslashreplace").decode())
    return run / REPORT_NAME


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        time=words.time,
        count=lambda n: f"{n:,}",
        number=words.number,
        percent=words.percent,
        width=lambda share: f"{100 * share:.2f}%",
        breakable=lambda name: escape(name).replace("_", Markup("_<wbr>")),
    )
    return environment
