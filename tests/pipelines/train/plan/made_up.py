"""Small made-up datasets: numbers of rows, no files."""

import numpy as np
from hypothesis import strategies as st

from kineograph.media.geometry import Bucket
from pipelines.train.plan.index import ShardRows, TrainingIndex
from pipelines.train.plan.plan import TrainingPlan

BUCKETS = [Bucket.parse(name) for name in ("32x32x1", "24x40x1", "32x32x9", "24x40x9", "64x64x17")]
IMAGES, WIDE_IMAGES, VIDEOS, WIDE_VIDEOS, LONG = BUCKETS


@st.composite
def shards(draw, number=0, most_rows=40):
    """A shard of some rows, of which some are held out."""
    rows = draw(st.integers(1, most_rows))
    allowed = draw(st.none() | st.lists(st.booleans(), min_size=rows, max_size=rows))
    packed = None if allowed is None else np.packbits(np.array(allowed, bool))
    return ShardRows(number, rows, draw(st.integers(1, 9)), packed)


@st.composite
def indexes(draw, most_shards=6, most_rows=40):
    """Some buckets with a few shards each, and a clip at least."""
    buckets = draw(st.lists(st.sampled_from(BUCKETS), min_size=1, unique=True))
    by_bucket, number = {}, 0
    for bucket in buckets:
        count = draw(st.integers(1, most_shards))
        by_bucket[bucket] = [draw(shards(number + i, most_rows)) for i in range(count)]
        number += count
    found = TrainingIndex(by_bucket)
    return found if found.clips else TrainingIndex({buckets[0]: [ShardRows(0, 3, 2)]})


@st.composite
def plans(draw, most_pack=9):
    """A plan over some buckets."""
    index = draw(indexes())
    sizes = {bucket: draw(st.integers(1, most_pack)) for bucket in index.clips}
    return TrainingPlan(index, draw(st.integers(0, 3)), sizes, draw(st.integers(1, 6)), {}, draw(st.integers(1, 8)))


def index_of(**counts):
    """Buckets by name, as in ``b32x32x9=40``, to their clips, in shards of 16 rows and row groups of 4."""
    by_bucket, number = {}, 0
    for name, count in counts.items():
        parts = []
        while count:
            rows = min(16, count)
            parts.append(ShardRows(number, rows, 4))
            number, count = number + 1, count - rows
        by_bucket[Bucket.parse(name[1:])] = parts
    return TrainingIndex(by_bucket)


def plan_of(pack=4, packs=1, seed=0, mix=None, shuffle_groups=4, **counts):
    """A plan whose packs are all of one size."""
    index = index_of(**counts)
    return TrainingPlan(index, seed, dict.fromkeys(index.clips, pack), packs, mix, shuffle_groups)


def addresses(rows):
    """(epoch, shard, row group, row) of each clip."""
    return list(zip(rows.epoch.tolist(), rows.shard.tolist(), rows.row_group.tolist(), rows.row.tolist(), strict=True))


def trainable(parts):
    """(shard, row group, row) of every row that may be trained on."""
    return [
        (part.shard, *divmod(int(row), part.row_group_size)) for part in parts for row in np.flatnonzero(part.mask())
    ]
