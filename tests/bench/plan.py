"""The plan of training on 10 million clips in 60 buckets: time, memory, balance, and that every clip comes once.

The manifest is made up: images and videos from 144p to 720p in three aspects, of 1 to 125 frames, in shards of 1000 to 2000
rows, of which a fiftieth is held out. Costs are those of STDiT-XL/2 on latents of strides 8 and 4, at 4e14 FLOP/s (40% of
an H200) and 30 ms for each micro-batch. The recipe is one that would be used on such a GPU: packs of 8 s, and 60 GiB of
activations with blocks recomputed.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil

from kineograph.media.geometry import Bucket
from kineograph.models.flops import count_flops
from kineograph.models.presets import find_preset
from kineograph.models.stdit import STDiTConfig
from pipelines.train.plan.costs import BucketCost, CostModel
from pipelines.train.plan.deal import deal
from pipelines.train.plan.index import ShardRows, TrainingIndex
from pipelines.train.plan.plan import BatchConfig, TrainingPlan, micro_batch_sizes, pack_sizes
from pipelines.train.plan.simulate import random_imbalance, simulate

CLIPS = 10_000_000
SHORT_SIDES = (144, 240, 368, 480, 720)
FRAMES = (1, 17, 49, 125)
HELD_OUT = 0.02
RATE, OVERHEAD_S = 4e14, 0.03
BATCH = BatchConfig(seconds=8.0, memory_gib=60.0)
RANKS = (8, 64, 512)
STEPS = 1000
COLD = 300
"""Steps, anywhere in the first three epochs, that are planned with nothing known from others."""
MOST_MS, MOST_MIB, MOST_IMBALANCE = 10.0, 1024.0, 0.02


def measure() -> dict[str, Any]:
    before = psutil.Process().memory_info().rss
    index, costs, tokens = make_index(), make_costs(), {bucket: work_of(bucket)[1] for bucket in buckets()}
    sizes, most = pack_sizes(index.clips, BATCH, costs), micro_batch_sizes(index.clips, BATCH, costs)
    times = {"cold": time_cold(index, costs, sizes, most), "warm": time_warm(index, costs, sizes, most)}
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20
    balance = [balance_of(index, costs, sizes, most, tokens, ranks, ranks) for ranks in RANKS]
    balance += [balance_of(index, costs, sizes, most, tokens, RANKS[-1], ranks) for ranks in RANKS[:-1]]
    wrong = wrong_clips(TrainingPlan(index, 0, sizes, RANKS[-1]))
    clips = sum(index.clips.values())
    worst_ms = max(found["cpu_max_ms"] for found in times.values())
    worst = max(facts["imbalance"]["mean"] for facts in balance)
    return {
        "claim": f"of 10 million clips in 60 buckets any step is planned for 512 ranks in {MOST_MS:.0f} ms of one core and "
        f"1 GB, the mean imbalance of ranks is at most {MOST_IMBALANCE:.0%}, and every clip comes once in an epoch",
        "detail": "; ".join(
            [
                *(_timing(name, found) for name, found in times.items()),
                f"{mib:.0f} MiB over the imports",
                *map(_balance, balance),
                f"{clips} clips in an epoch, {wrong} of them not once",
            ]
        ),
        "holds": worst_ms < MOST_MS and mib < MOST_MIB and worst <= MOST_IMBALANCE and not wrong,
        "milliseconds": times,
        "mib": mib,
        "balance": balance,
        "clips": clips,
        "clips_not_once": wrong,
    }


# The dataset and what its clips cost.


def buckets() -> list[Bucket]:
    found = []
    for side in SHORT_SIDES:
        longer = -(-side * 16 // 9 // 16) * 16
        found += [Bucket(h, w, f) for h, w in ((side, longer), (side, side), (longer, side)) for f in FRAMES]
    return found


def work_of(bucket: Bucket) -> tuple[int, int]:
    """FLOPs of training on a clip, and its visual tokens."""
    preset = find_preset("stdit-xl/2")
    latent = (1 + (bucket.frames - 1) // 4, bucket.height // 8, bucket.width // 8)
    flops = count_flops(preset.config, latent, preset.text_tokens)
    return flops.training, flops.tokens


def make_index() -> TrainingIndex:
    """Fewer clips the more tokens they have, about as their square root, with some accident."""
    random = np.random.default_rng(0)
    weights = np.array([work_of(bucket)[1] ** -0.4 for bucket in buckets()]) * random.lognormal(0, 0.5, len(buckets()))
    counts = np.ceil(weights / weights.sum() * CLIPS / (1 - HELD_OUT)).astype(int)
    by_bucket, shard = {}, 0
    for bucket, count in zip(buckets(), counts.tolist(), strict=True):
        parts = []
        while count > 0:
            rows = min(count, int(random.integers(1000, 2001)))
            allowed = np.packbits(random.random(rows) >= HELD_OUT)
            parts.append(ShardRows(shard, rows, int(random.choice((8, 12, 16))), allowed))
            shard, count = shard + 1, count - rows
        by_bucket[bucket] = parts
    return TrainingIndex(by_bucket)


def make_costs() -> CostModel:
    """Kept of a token in bf16: the input of every block, and all of the block that is being computed again (about 45 values
    of the model's width, kineograph.models.execution)."""
    model = find_preset("stdit-xl/2").config
    assert isinstance(model, STDiTConfig)
    token_bytes = 2 * model.width * (model.depth + 45)
    costs = {}
    for bucket in buckets():
        flops, tokens = work_of(bucket)
        costs[bucket] = BucketCost(OVERHEAD_S, flops / RATE, 0.0, float(tokens * token_bytes))
    return CostModel(costs)


# Time: the step, its deal and the slots of one rank.


def time_cold(
    index: TrainingIndex, costs: CostModel, sizes: Mapping[Bucket, int], most: Mapping[Bucket, int]
) -> dict[str, float]:
    """Steps here and there, each by a plan that was just made."""
    random = np.random.default_rng(1)
    ranks = RANKS[-1]
    epoch = TrainingPlan(index, 0, sizes, ranks).steps_per_epoch
    found = []
    for step in random.integers(0, int(3 * epoch), COLD).tolist():
        plan = TrainingPlan(index, 0, sizes, ranks)
        found.append(_time_step(plan, step, int(random.integers(ranks)), costs, ranks, most))
    return _summary(found[1:])  # the first one also imports


def time_warm(
    index: TrainingIndex, costs: CostModel, sizes: Mapping[Bucket, int], most: Mapping[Bucket, int]
) -> dict[str, float]:
    """One step after the other, as a rank has them."""
    plan, ranks = TrainingPlan(index, 0, sizes, RANKS[-1]), RANKS[-1]
    return _summary([_time_step(plan, step, 17, costs, ranks, most) for step in range(STEPS)])


def _time_step(
    plan: TrainingPlan, step: int, rank: int, costs: CostModel, ranks: int, most: Mapping[Bucket, int]
) -> tuple[float, float]:
    """Seconds of the clock, and of the processor: on a busy machine the first are also those of others."""
    gc.disable()
    clock, processor = time.perf_counter(), time.thread_time()
    rounds = deal(plan.step(step), costs, ranks, most).rounds
    slots = [plan.slots(part.stretch) for part in rounds[rank]]
    taken = time.perf_counter() - clock, time.thread_time() - processor
    gc.enable()
    assert all(slots)
    return taken


def _summary(found: list[tuple[float, float]]) -> dict[str, float]:
    clock, processor = 1e3 * np.array(found).T
    return {
        "median_ms": float(np.median(clock)),
        "p99_ms": float(np.quantile(clock, 0.99)),
        "max_ms": float(clock.max()),
        "cpu_p99_ms": float(np.quantile(processor, 0.99)),
        "cpu_max_ms": float(processor.max()),
    }


def _timing(name: str, found: Mapping[str, float]) -> str:
    return (
        f"{name} median {found['median_ms']:.1f}, p99 {found['p99_ms']:.1f}, max {found['max_ms']:.1f} ms, of processor "
        f"time p99 {found['cpu_p99_ms']:.1f}, max {found['cpu_max_ms']:.1f} ms"
    )


# Balance.


def balance_of(
    index: TrainingIndex,
    costs: CostModel,
    sizes: Mapping[Bucket, int],
    most: Mapping[Bucket, int],
    tokens: Mapping[Bucket, int],
    packs: int,
    ranks: int,
) -> dict[str, Any]:
    """The plan, beside ranks that draw their buckets: the plan's packs, and ones that just fit into memory."""
    plan = TrainingPlan(index, 0, sizes, packs)
    facts = simulate(plan, costs, ranks, STEPS, most, tokens=tokens)
    full = random_imbalance(TrainingPlan(index, 0, most, packs), costs, ranks, STEPS, most)
    return {"packs": packs, **facts, "random_full_memory": float(np.mean(full))}


def _balance(facts: Mapping[str, Any]) -> str:
    ours = facts["imbalance"]
    return (
        f"{facts['ranks']} ranks, {facts['packs']} packs ({facts['clips_per_step']:.0f} clips, {facts['step_s']:.0f} s): "
        f"mean {ours['mean']:.2%}, p95 {ours['p95']:.2%}, max {ours['max']:.2%}, "
        f"{facts['imbalance_by_round']['mean']:.2%} where ranks wait in every round, {facts['random']['mean']:.2%} where "
        f"they draw such packs at random, {facts['random_full_memory']:.1%} where they draw batches that fill memory"
    )


# Every clip.


def wrong_clips(plan: TrainingPlan) -> int:
    """Rows to train on that do not come once in the first epoch of their bucket, and others that do come."""
    shards = sorted(plan.index.rows, key=lambda part: part.shard)
    begin = np.concatenate([[0], np.cumsum([part.rows for part in shards])])
    group_size = np.array([part.row_group_size for part in shards])
    times = np.zeros(begin[-1], np.uint8)
    step, left = 0, dict(plan.index.clips)
    while any(count > 0 for count in left.values()):
        for stretch in plan.step(step).stretches:
            rows = plan.rows(stretch)
            first = rows.epoch == 0
            places = (begin[rows.shard] + rows.row_group * group_size[rows.shard] + rows.row)[first]
            np.add.at(times, places, 1)
            left[stretch.bucket] -= stretch.count
        step += 1
    return sum(int((times[begin[p.shard] : begin[p.shard] + p.rows] != p.mask()).sum()) for p in shards)
