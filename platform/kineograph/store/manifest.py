"""The manifest: the list of a dataset's shards with their digests. Its digest is the dataset's version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.text import Dtype
from kineograph.store.commit import sha256_file, write_json
from kineograph.store.places import NO_OPTIONS, Options, Place
from kineograph.store.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"
SUCCESS_NAME = "_SUCCESS"
AUTOENCODER_FOLDER = "vae"
"""Of a run: the autoencoder that made its latents."""


class Shard(BaseModel):
    """One Parquet file of one bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Relative to the run directory, with forward slashes."""
    bucket: str
    rows: int
    bytes: int
    sha256: str
    row_group_size: int | None = None
    """Rows of each row group but the last, which may have fewer; None in manifests from before it was written down, where
    the file tells. It is no part of the version, which the bytes of the file determine."""


class TextEncoderInfo(BaseModel):
    """Which encoder made the shards' text embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int
    max_tokens: int
    dtype: Dtype = "float32"
    """Of its weights and arithmetic. The default is for manifests from before it was written down."""


class AutoencoderInfo(BaseModel):
    """Which autoencoder made the shards' latents; it lies in the folder vae of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    channels: int
    strides: tuple[int, int, int]
    """Frames, rows and columns of pixels per latent."""
    dtype: str
    """Of the stored latents."""
    digest: str
    """kineograph.models.vae.fingerprint of it."""


class Manifest(BaseModel):
    """What a curation run made. ``digest`` covers the shards' contents and nothing of when or where they were made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    recipe_digest: str
    text_encoder: TextEncoderInfo
    video: bool = True
    """Whether the shards hold videos."""
    autoencoder: AutoencoderInfo | None = None
    """Of the shards' latents; None when they hold none."""
    shards: tuple[Shard, ...]
    totals: dict[str, Any]

    @property
    def digest(self) -> str:
        """Version of the dataset: SHA-256 over schema version, encoders and every shard's path and bytes."""
        parts = [
            self.schema_version,
            self.text_encoder.model_dump(exclude_defaults=True),  # as it was before there was a dtype
            [[s.path, s.rows, s.sha256] for s in self.shards],
        ]
        if self.autoencoder is not None:
            parts.append(self.autoencoder.model_dump(mode="json"))
        return digest(parts)

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets that hold at least one clip, sorted."""
        return sorted({Bucket.parse(s.bucket) for s in self.shards})

    def save(self, run: Path) -> None:
        write_json(run / MANIFEST_NAME, {**self.model_dump(mode="json"), "digest": self.digest})

    @classmethod
    def load(cls, run: str | Path, options: Options = NO_OPTIONS) -> Manifest:
        """Read the manifest of a finished curation run, a folder or a URL (kineograph.store.places).

        Raises UserError when there is none or it is damaged, and NotReached when the place does not answer.
        """
        return cls.load_from(Place(run, options))

    @classmethod
    def load_from(cls, place: Place) -> Manifest:
        """As :meth:`load`."""
        if not place.has(SUCCESS_NAME):
            state = "has not finished" if place.has("recipe.yaml") else "is no curation run"
            out = "RUN" if place.is_remote else place
            raise UserError(f"{place} {state}: make one with 'kineo data run RECIPE --input DIR --out {out}'")
        name = place / MANIFEST_NAME
        try:
            raw = json.loads(place.read(MANIFEST_NAME).decode())
            recorded = raw.pop("digest")
            manifest = cls.model_validate(raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is damaged: run 'kineo data decide {place}' to write it again") from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise UserError(
                f"{place} was written with shard schema {manifest.schema_version}, this is {SCHEMA_VERSION}: curate again"
            )
        if manifest.digest != recorded:
            raise UserError(f"{name} does not match its own digest: it was edited; curate again")
        return manifest


def verify(run: Path, manifest: Manifest) -> Iterator[tuple[Shard, str]]:
    """Yield every shard with what is wrong with it, "" when its bytes are those of the manifest."""
    for shard in manifest.shards:
        path = run / shard.path
        if not path.is_file():
            yield shard, "missing"
        elif path.stat().st_size != shard.bytes:
            yield shard, f"has {path.stat().st_size} bytes, the manifest says {shard.bytes}"
        elif sha256_file(path) != shard.sha256:
            yield shard, "its bytes do not match the manifest's sha256"
        else:
            yield shard, ""
