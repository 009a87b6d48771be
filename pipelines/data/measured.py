"""The measured clips: rows with every cheap signal, made from the analyses by chunks of sources.

A chunk is committed under a key of its sources and of the settings that shape clips, so deciding again with other
thresholds reads a few Parquet files and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kineograph.config import digest
from kineograph.errors import Failure
from kineograph.store.commit import committed
from kineograph.store.schema import CLIP_SCHEMA
from pipelines.data import clips as cutting
from pipelines.data import signals
from pipelines.data.analyse import ANALYSIS_VERSION
from pipelines.data.config import CurateConfig
from pipelines.data.duplicates.fingerprint import FingerprintArrays
from pipelines.data.gradual import load_transitions
from pipelines.data.inputs.sources import Source, caption_of, labels_of
from pipelines.data.work import analysis_path, samples_path

Row = dict[str, Any]

# Raise it when the rows of a chunk change.
MEASURED_VERSION = 1
# Sources of a chunk: some seconds of work, and few enough files to read them all again within a second or two.
CHUNK = 32
THUMBNAIL_SIDE = 160
_DECIDED = ("crop", "decision", "reason", "failed", "value", "threshold", "duplicate_of", "bucket", "used_s")
_SCORED = ("text_area", "unsafe", "aesthetic", "learned", "caption_match", "caption_model", "caption_hash")
SCHEMA = pa.schema(
    [field for field in CLIP_SCHEMA if field.name not in (*_DECIDED, *_SCORED)]
    + [pa.field("part", pa.string())]  # why it is no clip: transition | outside_span | ""
)
PRINTS_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("frame", pa.list_(pa.int32())),
        ("seconds", pa.list_(pa.float64())),
        ("hash", pa.list_(pa.uint64())),
        ("layout", pa.binary()),
        ("flat", pa.list_(pa.bool_())),
    ]
)


def chunks(lines: Sequence[Row], config: CurateConfig) -> list[Row]:
    """The chunks of the analysed sources ``lines`` (of work/sources.json, sorted by uri), each with its key."""
    settings = [
        MEASURED_VERSION,
        ANALYSIS_VERSION,
        config.cuts.model_dump(),
        config.clips.model_dump(),
        config.transitions.model_dump() if config.transitions else None,
        config.filters.black.picture,
        config.filters.static.level,
    ]
    parts = []
    for start in range(0, len(lines), CHUNK):
        some = [{"source": line["source"], "source_id": line["source_id"]} for line in lines[start : start + CHUNK]]
        key = digest([settings, config.limits.model_dump(), config.samples.model_dump(), some])
        parts.append({"key": key, "sources": some})
    return parts


def chunk_path(run: Path, key: str) -> Path:
    """Where the rows of a chunk are kept."""
    return run / "work" / "measured" / f"{key[:24]}.clips.parquet"


def prints_path(run: Path, key: str) -> Path:
    """Where the fingerprints of a chunk's sources are kept."""
    return run / "work" / "measured" / f"{key[:24]}.prints.parquet"


def measure_chunk(chunk: Row, *, run: str, config: CurateConfig) -> Row:
    """Commit the rows and fingerprints of ``chunk``. Raises Failure when an analysis is damaged."""
    folder = Path(run)
    rows: list[Row] = []
    prints: list[Row] = []
    for entry in chunk["sources"]:
        source, source_id = Source.from_json(entry["source"]), entry["source_id"]
        path = analysis_path(folder, source_id, config)
        try:
            result = signals.load(path)["result"]
            analysis = signals.parse(result)
            found = FingerprintArrays.from_json(result["prints"])
            samples = pq.read_table(samples_path(path)).to_pydict()
        except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as error:
            raise Failure(f"{path} is damaged or gone: run the same 'kineo data run' again") from error
        transitions = load_transitions(path, config.transitions) if config.transitions else []
        spans = cutting.split(analysis, config.cuts, config.clips, transitions, source.spans)
        rows.extend(_row(source, source_id, analysis, span, samples, config) for span in spans)
        prints.append(
            {
                "source_id": source_id,
                "frame": found.frame,
                "seconds": found.seconds,
                "hash": found.hash,
                "layout": found.layout.tobytes(),
                "flat": found.flat,
            }
        )
    with committed(prints_path(folder, chunk["key"])) as temp:
        pq.write_table(pa.Table.from_pylist(prints, schema=PRINTS_SCHEMA), temp, compression="zstd")
    with committed(chunk_path(folder, chunk["key"])) as temp:  # last: where it stands, the prints do too
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temp, compression="zstd")
    return {"clips": len(rows)}


def _row(
    source: Source,
    source_id: str,
    analysis: signals.Analysis,
    span: cutting.Span,
    samples: dict[str, list[Any]],
    config: CurateConfig,
) -> Row:
    start_s, end_s = float(analysis.times[span.start]), float(analysis.times[span.end])
    caption = caption_of(source.captions, start_s, end_s)
    return {
        "clip_id": cutting.clip_id(source_id, span),
        "source_id": source_id,
        "uri": source.uri,
        "media_type": analysis.media_type,
        "shot": span.shot,
        "start_s": start_s,
        "end_s": end_s,
        "start_frame": span.start,
        "end_frame": span.end,
        "content": list(signals.content(analysis, span.start, span.end, config.filters)),
        "width": analysis.width,
        "height": analysis.height,
        "fps": analysis.fps,
        **asdict(signals.measure(analysis, span.start, span.end, config.filters)),
        "caption": caption,
        "caption_source": source.caption_source if caption else "",
        "labels": json.dumps(labels_of(source, start_s, end_s), sort_keys=True),
        "thumbnail": _thumbnail(samples, span.start, span.end),
        "part": span.reason.value if span.reason else "",
    }


def _thumbnail(samples: dict[str, list[Any]], start: int, end: int) -> bytes:
    """The sampled frame nearest to the middle of [``start``, ``end``), of those within if there are any, as a small
    JPEG."""
    if not samples["frame"]:
        return b""
    frames = np.array(samples["frame"])
    distance = np.abs(frames - (start + end) / 2) + np.where((frames >= start) & (frames < end), 0, 1e12)
    image = cv2.imdecode(np.frombuffer(samples["jpeg"][int(distance.argmin())], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "a sampled frame is no JPEG"
    scale = min(1.0, THUMBNAIL_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def read_rows(run: Path, keys: Sequence[str]) -> list[Row]:
    """The rows of the chunks ``keys``, in order, without thumbnails; what models score is NaN."""
    columns = [name for name in SCHEMA.names if name != "thumbnail"]
    nan = float("nan")
    unscored = {"text_area": nan, "unsafe": nan, "aesthetic": nan, "learned": nan, "caption_match": nan}
    rows = []
    for key in keys:
        for row in pq.read_table(chunk_path(run, key), columns=columns).to_pylist():
            rows.append({**row, **unscored})
    return rows


def read_thumbnails(run: Path, key: str) -> dict[str, bytes]:
    """clip_id -> JPEG of a chunk."""
    table = pq.read_table(chunk_path(run, key), columns=["clip_id", "thumbnail"])
    return dict(zip(table["clip_id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))


def read_prints(run: Path, keys: Sequence[str]) -> Iterator[tuple[str, FingerprintArrays]]:
    """(source_id, fingerprints) of every source of the chunks ``keys``."""
    for key in keys:
        table = pq.read_table(prints_path(run, key))
        for row in range(table.num_rows):
            values = {name: table[name][row] for name in PRINTS_SCHEMA.names}
            hashes = values["hash"].values.to_numpy()
            layout = np.frombuffer(values["layout"].as_py(), np.uint8).reshape(len(hashes), -1)
            yield (
                values["source_id"].as_py(),
                FingerprintArrays(
                    frame=values["frame"].values.to_numpy(),
                    seconds=values["seconds"].values.to_numpy(),
                    hash=hashes,
                    layout=layout,
                    flat=values["flat"].values.to_numpy(zero_copy_only=False),
                ),
            )
