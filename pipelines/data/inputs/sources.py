"""What a run is made of: the media files that its input names, and what is said of them.

The input is a folder, a file, a glob, the same in s3:// or gs://, an https:// file, or a manifest. A listing opens no
media: names come from the folders, or the store's lists, and only captions that are there are read.
"""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kineograph.errors import UserError
from pipelines.data.inputs.listing import Disk, Folder, Store, is_glob, split_glob
from pipelines.data.inputs.locations import (
    Inputs,
    Location,
    file_system,
    locate,
    locate_beside,
    parent,
    printable,
    redacted,
    what_failed,
)
from pipelines.data.inputs.manifests import MANIFEST_EXTENSIONS, Label, Row, read_manifest
from pipelines.data.inputs.sidecars import MAX_SIDECAR_BYTES, SIDECAR_EXTENSIONS, Caption, parse_sidecar

__all__ = ["Caption", "Inputs", "Labels", "Listing", "Source", "caption_of", "labels_of", "list_sources", "resolved"]

VIDEO_EXTENSIONS = frozenset(
    (
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".flv",
        ".ogv",
        ".3gp",
        ".3g2",
        ".gif",
    )
)
IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".apng"])


@dataclass(frozen=True)
class Labels:
    """What a manifest's further columns say of a stretch of a source; ``end_s`` None is its end."""

    values: dict[str, Label]
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Source:
    """A file of the input."""

    uri: str
    """Path below the input with forward slashes, or as a manifest writes it, without credentials; bytes that are no
    UTF-8 are written as \\xNN."""
    path: str
    """Where to open it: a path (surrogates stand for bytes that are no UTF-8) or a URL."""
    captions: tuple[Caption, ...] = ()
    warning: str = ""
    """What was wrong with its sidecar."""
    caption_source: str = ""
    """sidecar or manifest; "" without captions."""
    spans: tuple[tuple[float, float | None], ...] = ()
    """The stretches that the manifest names, in seconds, sorted; () is the whole file."""
    labels: dict[str, Label] = field(default_factory=dict)
    """What all its rows in the manifest agree on."""
    stretches: tuple[Labels, ...] = ()
    """The labels of each row, when they differ."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Source:
        nested = {
            "captions": tuple(Caption(**caption) for caption in value["captions"]),
            "spans": tuple((start, end) for start, end in value.get("spans", ())),
            "stretches": tuple(Labels(**labels) for labels in value.get("stretches", ())),
        }
        return cls(**{**value, **nested})


@dataclass
class Listing:
    """The sources under an input, sorted by uri, and what else lay there."""

    sources: list[Source]
    others: Counter[str] = field(default_factory=Counter)
    """Extension -> files that are neither media nor sidecars."""
    unread: list[str] = field(default_factory=list)
    """Folders that may not be read."""

    @property
    def note(self) -> str:
        """One line about what is left out; "" when nothing is."""
        notes = []
        if self.others:
            kinds = ", ".join(f"{count} {ext or 'without extension'}" for ext, count in self.others.most_common(5))
            notes.append(f"left out {self.others.total()} files that are no media by their names: {kinds}")
        if self.unread:
            notes.append(f"left out {len(self.unread)} folders that may not be read: {', '.join(self.unread[:3])}")
        return "; ".join(notes)


def list_sources(input: str | Path, config: Inputs | None = None) -> Listing:
    """The media files that ``input`` names: all below a folder or prefix, those that fit a glob, the rows of a
    manifest, or the one file.

    A manifest's sources are listed whether they are there or not. Raises UserError when the input is missing, may not
    be read, holds no media, or has a broken row.
    """
    config = config or Inputs()
    location = _absolute(locate(input, config))
    if _extension(location.name) in MANIFEST_EXTENSIONS and not is_glob(location.path) and not _is_folder(location):
        return _of_manifest(location, config)
    if location.scheme == "https":
        file_system("https", config)
        return Listing([Source(location.name or location.shown, location.url)])
    if location.scheme:
        return _of_store(location, config)
    return _of_disk(location)


def resolved(input: str | Path, config: Inputs | None = None) -> str:
    """``input`` as a recipe stores it: an absolute path or a URL, without credentials."""
    return _absolute(locate(input, config or Inputs())).shown


def _absolute(location: Location) -> Location:
    """``location`` from the root: workers need not share this process's current directory."""
    return location if location.scheme else Location("", str(Path.cwd() / location.path))


def _is_folder(location: Location) -> bool:
    return not location.scheme and os.path.isdir(location.path)


def _of_disk(location: Location) -> Listing:
    path = location.path
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"input {location.shown} cannot be read: check its permissions")
        return _of_folder(Disk(path), location.shown)
    if os.path.exists(path):
        folder, name = Disk(os.path.dirname(path)), os.path.basename(path)
        stem = os.path.splitext(name)[0]
        beside = {stem + e for e in SIDECAR_EXTENSIONS if os.path.exists(folder.path_of(stem + e))}
        return Listing(_with_sidecars([Source(printable(name), path)], [name], beside, folder))
    if is_glob(path):
        root, pattern, depth = split_glob(path)
        if os.path.isdir(root):
            return _of_folder(Disk(root), location.shown, pattern.match, depth)
    raise UserError(f"input {location.shown} does not exist")


def _of_store(location: Location, config: Inputs) -> Listing:
    if is_glob(location.path):
        root, pattern, depth = split_glob(location.path)
        return _of_folder(Store(Location(location.scheme, root), config), location.shown, pattern.match, depth)
    folder = Store(location, config)
    names = list(folder.names())
    if names or "/" not in location.path:
        return _of_names(names, folder, location.shown)
    # Nothing is below it: it is a file, which may have sidecars.
    stem = os.path.splitext(location.name)[0]
    folder = Store(parent(location), config, prefix=stem)
    beside = set(folder.names())
    if location.name not in beside:
        raise UserError(f"input {location.shown} does not exist: check the bucket and the prefix")
    return Listing(_with_sidecars([Source(printable(location.name), location.url)], [location.name], beside, folder))


def _of_folder(
    folder: Folder, shown: str, wanted: Callable[[str], Any] | None = None, depth: int | None = None
) -> Listing:
    return _of_names(folder.names(depth), folder, shown, wanted)


def _of_names(names: Iterable[str], folder: Folder, shown: str, wanted: Callable[[str], Any] | None = None) -> Listing:
    """The listing of ``names``, the files of ``folder``, of which those that are ``wanted`` are sources."""
    media, sidecars, others = [], set(), Counter[str]()
    for name in names:
        extension = _extension(name)
        if extension in SIDECAR_EXTENSIONS:
            sidecars.add(name)
        elif wanted is not None and not wanted(name):
            continue
        elif extension in VIDEO_EXTENSIONS or extension in IMAGE_EXTENSIONS:
            media.append(name)
        else:
            others[extension] += 1
    if not media:
        known = " ".join(sorted(e[1:] for e in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
        raise UserError(f"no media found under {shown}: it looks for files named {known}")
    sources = [Source(printable(name), folder.path_of(name)) for name in media]
    sources = _with_sidecars(sources, media, sidecars, folder)
    return Listing(sorted(sources, key=lambda source: source.uri), others, folder.unread)


def _with_sidecars(sources: list[Source], names: list[str], sidecars: set[str], folder: Folder) -> list[Source]:
    """``sources``, whose files are ``names`` in ``folder``, with what NAME.json says, else NAME.txt, else as they
    are."""
    found: dict[int, str] = {}
    for index, name in enumerate(names):
        stem = os.path.splitext(name)[0]
        beside = next((stem + e for e in (".json", ".txt") if stem + e in sidecars), None)
        if beside is not None:
            found[index] = beside
    sources = list(sources)
    for (index, name), content in zip(found.items(), folder.read(list(found.values()), MAX_SIDECAR_BYTES), strict=True):
        try:
            if isinstance(content, Exception):
                raise content
            captions = parse_sidecar(name, content)
            sources[index] = replace(sources[index], captions=captions, caption_source="sidecar" if captions else "")
        except (OSError, ValueError) as error:
            warning = f"its caption file cannot be read: {' '.join(str(error).split())[:120]}"
            sources[index] = replace(sources[index], warning=warning)
    return sources


def _of_manifest(location: Location, config: Inputs) -> Listing:
    folder = parent(location)
    rows: dict[str, list[Row]] = defaultdict(list)
    places: dict[str, Location] = {}
    with _open_manifest(location, config) as stream:
        for row in read_manifest(stream, location.shown):
            try:
                place = locate_beside(row.uri, folder, config)
            except UserError as error:
                raise UserError(f"{row.where}: {error}") from error
            key = place.shown
            places.setdefault(key, place)
            rows[key].append(row)
    if not rows:
        raise UserError(f"{location.shown} names no source: it has no rows")
    for scheme in {place.scheme for place in places.values()} - {""}:
        file_system(scheme, config)
    sources = [_of_rows(rows[key], places[key]) for key in places]
    return Listing(sorted(_with_local_sidecars(sources, places.values()), key=lambda source: source.uri))


def _open_manifest(location: Location, config: Inputs) -> BinaryIO:
    try:
        if not location.scheme:
            return open(location.path, "rb")
        return io.BytesIO(file_system(location.scheme, config).cat_file(location.path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"input {location.shown} does not exist") from error
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and not location.scheme else None
        reason = reason or what_failed(error, location.scheme)
        raise UserError(f"input {location.shown} cannot be read: {reason}") from error


def _of_rows(rows: list[Row], place: Location) -> Source:
    """The source at ``place``, which all of ``rows`` name."""
    rows = sorted(rows, key=lambda row: (row.start_s, _end(row.end_s)))
    captions = dict.fromkeys(Caption(row.caption, row.start_s, row.end_s) for row in rows if row.caption)
    spans = list(dict.fromkeys((row.start_s, row.end_s) for row in rows))
    first = rows[0].labels
    same = all(row.labels == first for row in rows)
    common = {name: value for name, value in first.items() if all(row.labels.get(name) == value for row in rows)}
    return Source(
        uri=redacted(rows[0].uri) if place.scheme else printable(rows[0].uri),
        path=place.url,
        captions=tuple(captions),
        caption_source="manifest" if captions else "",
        spans=() if spans == [(0.0, None)] else tuple(spans),
        labels=common,
        stretches=() if same else tuple(Labels(row.labels, row.start_s, row.end_s) for row in rows),
    )


def _with_local_sidecars(sources: list[Source], places: Iterable[Location]) -> list[Source]:
    """``sources`` with the sidecars of those that the manifest does not caption; each folder is read once.

    Not those in a store: its folders can be far larger than the manifest.
    """
    sources = list(sources)
    in_folder: dict[str, list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        if not place.scheme and not sources[index].captions:
            in_folder[os.path.dirname(place.path)].append(index)
    for path, indices in in_folder.items():
        folder = Disk(path)
        beside = {name for name in folder.names(depth=1) if _extension(name) in SIDECAR_EXTENSIONS}
        names = [os.path.basename(sources[index].path) for index in indices]
        for index, source in zip(
            indices, _with_sidecars([sources[i] for i in indices], names, beside, folder), strict=True
        ):
            sources[index] = source
    return sources


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _end(end_s: float | None) -> float:
    return float("inf") if end_s is None else end_s


T = TypeVar("T", Caption, Labels)


def caption_of(captions: Sequence[Caption], start_s: float, end_s: float) -> str:
    """The caption whose span overlaps [start_s, end_s) most, on a tie the shortest, then the earliest; "" when none
    does.

    A span of no length, an image's, takes the caption that it stands in.
    """
    best = _covering(captions, start_s, end_s)
    return best.text if best else ""


def labels_of(source: Source, start_s: float, end_s: float) -> dict[str, Label]:
    """The labels of the manifest's row that covers [start_s, end_s) most, chosen as captions are; those that all rows
    agree on when none does."""
    best = _covering(source.stretches, start_s, end_s)
    return dict(best.values if best else source.labels)


def _covering(stretches: Sequence[T], start_s: float, end_s: float) -> T | None:
    best, best_rank = None, (0.0, 0.0)
    for stretch in stretches:
        stretch_end = _end(stretch.end_s)
        overlap = min(end_s, stretch_end) - max(start_s, stretch.start_s)
        if start_s == end_s and stretch.start_s <= start_s <= stretch_end:
            overlap = 1.0
        # Sums of frame times differ in their last bits.
        rank = (round(overlap, 6), stretch.start_s - stretch_end)
        if overlap > 1e-9 and (best is None or rank > best_rank):
            best, best_rank = stretch, rank
    return best
