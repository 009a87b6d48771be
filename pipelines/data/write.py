"""Which clips stand in which shard, and writing one from the files of its clips and captions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kineograph.config import digest
from kineograph.errors import Failure
from kineograph.media.geometry import Bucket
from kineograph.store.commit import write_json
from kineograph.store.manifest import Shard, TextEncoderInfo
from kineograph.store.schema import SCHEMA_VERSION
from kineograph.store.shards import write_shard
from kineograph.store.tensors import pack
from pipelines.data.config import CurateConfig
from pipelines.data.encode import encoded_path, used_span
from pipelines.data.latents import latent_path, read_latent
from pipelines.data.ledger import Row
from pipelines.data.text import Encoder, states_of, states_path


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: where, and its rows with the keys of what comes from files: ``key`` of the video, ``latent``, and
    the caption of the embedding; a key that is None stands for a column that is not written."""

    path: str
    bucket: str
    rows: tuple[Row, ...]
    row_group_size: int
    text_encoder: Row
    states: str
    """Key of the captions' states, as states_path takes it."""

    @property
    def key(self) -> str:
        """Names the shard's bytes: equal keys mean equal bytes."""
        return digest([SCHEMA_VERSION, vars(self)])


def plan_shards(
    clips: list[Row],
    keys: Mapping[str, str],
    config: CurateConfig,
    encoder: Encoder,
    latents: Mapping[str, str] = MappingProxyType({}),
) -> list[ShardPlan]:
    """Kept clips by bucket in the order of their ids, ``config.shards.rows`` to a shard.

    ``keys``: clip_id -> key of its encoded bytes, ``latents``: of its latent; a clip that is not in one has none.
    """
    buckets: dict[str, list[Row]] = defaultdict(list)
    for clip in clips:
        if clip["decision"] == "keep":
            buckets[clip["bucket"]].append(clip)
    plans = []
    for name in sorted(buckets, key=Bucket.parse):
        kept = sorted(buckets[name], key=lambda clip: clip["clip_id"])
        for number, start in enumerate(range(0, len(kept), config.shards.rows)):
            rows = kept[start : start + config.shards.rows]
            plans.append(
                ShardPlan(
                    path=f"shards/bucket={name}/part-{number:05d}.parquet",
                    bucket=name,
                    rows=tuple(_shard_row(clip, keys, latents, config.buckets.fps) for clip in rows),
                    row_group_size=config.shards.row_group_size,
                    text_encoder=encoder.info.model_dump(exclude_defaults=True),  # as in Manifest.digest
                    states=encoder.key,
                )
            )
    return plans


def _shard_row(clip: Row, keys: Mapping[str, str], latents: Mapping[str, str], fps: float) -> Row:
    bucket = Bucket.parse(clip["bucket"])
    start_s, end_s = clip["start_s"], clip["end_s"]
    if not bucket.is_image:
        start_s, end_s = used_span(start_s, end_s, bucket, fps)
    return {
        "clip_id": clip["clip_id"],
        "source_id": clip["source_id"],
        "media_type": clip["media_type"],
        "height": bucket.height,
        "width": bucket.width,
        "num_frames": bucket.frames,
        "fps": 0.0 if bucket.is_image else fps,
        "caption": clip["caption"],
        "caption_source": clip["caption_source"],
        "labels": clip["labels"],
        "aesthetic": _known(clip["aesthetic"]),
        "motion": _known(clip["motion"]),
        "source_uri": clip["uri"],
        "start_s": start_s,
        "end_s": end_s,
        "key": keys.get(clip["clip_id"]),
        "latent": latents.get(clip["clip_id"]),
    }


def _known(value: float) -> float | None:
    return None if value != value else value


def shard_bytes(run: Path, plan: ShardPlan) -> int:
    """About how many the shard of ``plan`` will have: those of its videos and latents."""
    videos = [encoded_path(run, row["key"]) for row in plan.rows if row["key"]]
    latents = [latent_path(run, row["latent"]) for row in plan.rows if row["latent"]]
    return sum(path.stat().st_size for path in videos + latents)


def already_written(run: Path, plan: ShardPlan) -> Shard | None:
    """The shard of ``plan`` if it was committed before, and as planned now."""
    try:
        record = json.loads(_record_path(run, plan.path).read_text())
        if record["key"] != plan.key or (run / plan.path).stat().st_size != record["shard"]["bytes"]:
            return None
        return Shard(**record["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_stale(run: Path, plans: list[ShardPlan]) -> None:
    """Delete the shards of earlier plans, so that a folder holds what the manifest lists and nothing else."""
    wanted = {run / plan.path for plan in plans}
    for path in sorted((run / "shards").glob("bucket=*/part-*.parquet")):
        if path not in wanted:
            path.unlink()
            _record_path(run, path.relative_to(run).as_posix()).unlink(missing_ok=True)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def write_planned(item: dict[str, Any], *, run: str) -> dict[str, Any]:
    """Commit the shard of the ShardPlan ``item`` and then, under work, its record, which is returned."""
    plan = ShardPlan(**{**item, "rows": tuple(item["rows"])})
    encoder = Encoder(TextEncoderInfo(**plan.text_encoder), plan.states)
    rows = []
    for row in plan.rows:
        values = {name: value for name, value in row.items() if name != "key"}
        video = _encoded(Path(run), row["key"]) if row["key"] else None
        latent = _latent(Path(run), row["latent"]) if row["latent"] else None
        states = _states(Path(run), row["caption"], encoder)
        rows.append({**values, "text_embedding": pack(states), "latent": latent, "video": video})
    # A kill between shard and record must not leave the record of other bytes, which a later plan may ask for again.
    _record_path(Path(run), plan.path).unlink(missing_ok=True)
    shard = write_shard(Path(run), plan.path, plan.bucket, rows, plan.row_group_size)
    record = {"key": plan.key, "shard": shard.model_dump()}
    write_json(_record_path(Path(run), plan.path), record)
    return record


def _states(run: Path, caption: str, encoder: Encoder) -> Any:
    try:
        return states_of(run, caption, encoder)
    except (OSError, ValueError) as error:
        states_path(run, caption, encoder.key).unlink(missing_ok=True)
        raise Failure("the states of a caption are damaged or gone: run the same command again") from error


def _latent(run: Path, key: str) -> dict[str, Any]:
    from kineograph.store.torch_tensors import pack_tensor

    return pack_tensor(read_latent(run, key))


def _encoded(run: Path, key: str) -> bytes:
    try:
        return encoded_path(run, key).read_bytes()
    except OSError as error:
        raise Failure(f"{encoded_path(run, key)} is gone: run the same command again") from error


def _record_path(run: Path, shard: str) -> Path:
    return run / "work" / Path(shard).with_suffix(".json")
