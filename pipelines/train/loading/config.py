"""What a recipe says of reading clips."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from kineograph.config import Config

_SECRET_OPTIONS = frozenset(("secret", "password", "aws_secret_access_key", "aws_session_token", "private_key"))


class LoadingConfig(Config):
    """How a rank reads clips ahead of its steps."""

    workers: int | None = Field(None, ge=0)
    """Processes that decode clips, for each rank; 0 decodes in a thread of the rank. None: 0 where latents are read, or
    where all decoded clips fit into cache_mib; else 2. A process takes about 0.3 GiB."""
    cache_mib: int = Field(1024, ge=0)
    """Decoded clips that a rank keeps in memory, MiB. The first ones that fit stay."""
    read_ahead: int = Field(8, ge=1)
    """Micro-batches, at most, that are on their way to a rank or ready for it."""
    read_ahead_mib: int = Field(2048, ge=1)
    """What these micro-batches take in memory, MiB, as far as that is known before they are decoded. One is always read."""
    row_group_cache_mib: int = Field(512, ge=0)
    """Row groups as they lie in the shards that a rank keeps in memory, MiB, those used last. When it holds the row groups
    that are shuffled together, shuffle_groups of every bucket, each is read once in an epoch."""
    skip_damaged: bool = False
    """Whether a clip that cannot be decoded is left out: another one of its bucket stands in for it, with weight 0. By
    default it ends the run."""
    clip_seconds: float = Field(300.0, gt=0)
    """Most seconds that a decoding process may take for one clip."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Where the run is a URL, options of s3fs or gcsfs, such as endpoint_url or anon. No credentials: those come from the
    standard AWS and Google environment variables and files."""

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in _keys(options):
            if key.lower() in _SECRET_OPTIONS:
                raise ValueError(f"{key!r} is a credential, and recipes are stored: use the environment instead")
        return options


def _keys(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [str(key) for key in value] + [key for inner in value.values() for key in _keys(inner)]
