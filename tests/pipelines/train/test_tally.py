"""A step's means over all micro-batches, and which clips it had."""

import pytest
import torch

from kineograph.media.geometry import Bucket
from kineograph.store.shards import RowAddress
from pipelines.train.kinds.base import Losses
from pipelines.train.plan.plan import Slot
from pipelines.train.tally import Tally

IMAGES, VIDEOS = Bucket(8, 8, 1), Bucket(8, 8, 9)
CPU = torch.device("cpu")


def slots(first, count, epoch=0):
    return [Slot(RowAddress(0, 0, n), epoch, n, f"clip {n}") for n in range(first, first + count)]


def tally():
    return Tally([IMAGES, VIDEOS], ["told"], CPU)


def test_means_are_over_clips_and_not_over_micro_batches():
    step = tally()
    step.add(IMAGES, Losses(torch.tensor([1.0]), {"part": torch.tensor([5.0])}), slots(0, 1), torch.ones(1))
    step.add(VIDEOS, Losses(torch.tensor([2.0, 3, 4]), {"part": torch.ones(3)}), slots(1, 3), torch.ones(3))
    means = step.over_ranks().means
    assert means == {
        "loss": 2.5, "loss_image": 1, "loss_video": 3, "loss_8x8x1": 1, "loss_8x8x9": 3, "part": 2,
    }  # fmt: skip


def test_a_clip_of_no_weight_counts_for_nothing():
    step = tally()
    step.add(VIDEOS, Losses(torch.tensor([2.0, 100])), slots(0, 2), torch.tensor([1.0, 0]))
    totals = step.over_ranks()
    assert totals.means["loss"] == 2
    assert totals.left_out == 1
    alone = tally()
    alone.add(VIDEOS, Losses(torch.tensor([7.0])), slots(0, 1), torch.ones(1))
    assert totals.clips == alone.over_ranks().clips


def test_what_a_kind_tells_is_summed_and_divided():
    step = tally()
    for total, count in ((3.0, 1), (5.0, 3)):
        told = {"told": (torch.tensor(total), torch.tensor(count))}
        step.add(VIDEOS, Losses(torch.ones(1), means=told), slots(0, 1), torch.ones(1))
    assert step.over_ranks().means["told"] == 2


def test_the_fingerprint_is_of_the_clips_and_their_epochs_in_any_order():
    def fingerprint(*parts):
        step = tally()
        for part in parts:
            step.add(VIDEOS, Losses(torch.ones(len(part))), part, torch.ones(len(part)))
        return step.over_ranks().clips

    whole = fingerprint(slots(0, 4))
    assert fingerprint(slots(2, 2), slots(0, 2)) == whole
    others = [fingerprint(slots(1, 4)), fingerprint(slots(0, 3)), fingerprint(slots(0, 4, epoch=1)), fingerprint()]
    assert whole not in others


@pytest.mark.parametrize("flag", ["stop", "save"])
def test_a_flag_reaches_all(flag):
    step = tally()
    step.add(VIDEOS, Losses(torch.ones(1)), slots(0, 1), torch.ones(1))
    step.ask(flag)
    assert step.over_ranks().flags == {flag}
