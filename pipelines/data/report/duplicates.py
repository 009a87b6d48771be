"""Clusters of duplicates: what is kept beside what was rejected for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sized

import numpy as np

from kineograph.store.schema import Reason
from pipelines.data.report.columns import Clips
from pipelines.data.report.pictures import Album
from pipelines.data.report.words import Row, plural, shortened

CLUSTERS_SHOWN = 6
MEMBERS_SHOWN = 5


def duplicate_facts(sources: list[Row], clips: Clips, album: Album) -> list[Row]:
    """A group for each way of being a duplicate that was found: exact, perceptual (files, then clips), semantic."""
    groups = [
        _of_sources(sources, clips, album, Reason.EXACT_DUPLICATE, "The same file", "files with the same bytes"),
        _of_sources(
            sources, clips, album, Reason.PERCEPTUAL_DUPLICATE, "The same video", "whole sources, frame for frame"
        ),
        _of_clips(clips, album, Reason.PERCEPTUAL_DUPLICATE, "The same pictures", "clips, frame for frame"),
        _of_clips(clips, album, Reason.SEMANTIC_DUPLICATE, "The same content", "clips, by CLIP embedding"),
    ]
    return [group for group in groups if group]


def _of_sources(sources: list[Row], clips: Clips, album: Album, reason: Reason, title: str, kind: str) -> Row | None:
    clusters: dict[str, list[Row]] = defaultdict(list)
    for source in sources:
        if source["reason"] == reason.value:
            clusters[source["duplicate_of"]].append(source)
    if not clusters:
        return None
    chosen = sorted(clusters, key=lambda kept: (-len(clusters[kept]), kept))[:CLUSTERS_SHOWN]
    exact = reason is Reason.EXACT_DUPLICATE
    uris = {source["source_id"]: source["uri"] for source in sources if not source["reason"]}
    pictured = {clip["source_id"]: clip for clip in reversed(clips.rows)}  # the first clip of each
    shown = [
        {
            "kept": album.show_source(pictured[kept], rank=1) if kept in pictured else None,
            "kept_name": shortened(uris.get(kept, kept)),
            "files": [
                # Of the same bytes there is no more to say; else the note has the distance.
                {"uri": shortened(row["uri"]), "note": "" if exact else shortened(row["detail"] or "", 160)}
                for row in clusters[kept][:MEMBERS_SHOWN]
            ],
            "more": max(0, len(clusters[kept]) - MEMBERS_SHOWN),
            "members": [],
        }
        for kept in chosen
    ]
    return _group(title, kind, clusters, "source", shown)


def _of_clips(clips: Clips, album: Album, reason: Reason, title: str, kind: str) -> Row | None:
    clusters: dict[str, list[int]] = defaultdict(list)
    for index in clips.rejected_by(reason):
        clusters[clips.rows[index]["duplicate_of"]].append(int(index))
    if not clusters:
        return None
    of_id = {clip["clip_id"]: clip for clip in clips.rows}
    shown = []
    for kept in _telling(clusters, clips):
        # The least alike first: the nearest to the threshold is the one to doubt.
        far = np.abs(clips.value[clusters[kept]] - clips.threshold[clusters[kept]])
        members = [clusters[kept][i] for i in np.argsort(far, kind="stable")]
        shown.append(
            {
                "kept": album.show(of_id[kept], rank=1) if kept in of_id else None,
                "kept_name": shortened(kept),
                "files": [],
                "more": max(0, len(members) - MEMBERS_SHOWN),
                "members": [album.show(clips.rows[i], rank=2) for i in members[:MEMBERS_SHOWN]],
            }
        )
    return _group(title, kind, clusters, "clip", shown)


def _telling(clusters: Mapping[str, list[int]], clips: Clips) -> list[str]:
    """The largest clusters, and those with the member nearest to the threshold."""
    by_size = sorted(clusters, key=lambda kept: (-len(clusters[kept]), kept))
    margin = {kept: np.abs(clips.value[rows] - clips.threshold[rows]) for kept, rows in clusters.items()}
    nearest = {kept: float(np.min(m[np.isfinite(m)], initial=np.inf)) for kept, m in margin.items()}
    by_doubt = sorted(clusters, key=lambda kept: (nearest[kept], kept))
    half = CLUSTERS_SHOWN // 2
    return list(dict.fromkeys([*by_size[:half], *by_doubt[:half], *by_size[:CLUSTERS_SHOWN]]))[:CLUSTERS_SHOWN]


def _group(title: str, kind: str, clusters: Mapping[str, Sized], unit: str, shown: list[Row]) -> Row:
    sizes = [len(members) for members in clusters.values()]
    return {
        "title": title,
        "kind": kind,
        "words": f"{plural(sum(sizes), unit)} rejected for {len(sizes):,} kept, at most {max(sizes):,} for one",
        "clusters": shown,
        "hidden": len(sizes) - len(shown),
    }
