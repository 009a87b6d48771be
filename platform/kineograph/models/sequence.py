"""Sequence parallelism: ranks that share the tokens of each clip, for videos too long for one of them.

Dynamic sequence parallelism (DSP; Zhao et al. 2024). Attention over time needs whole places, attention in space whole
frames, and the rest of a block looks at a token alone. So the tokens (B T S D) lie on the P ranks of a group by places,
and what attention in space is given is turned to lie by frames, what it gives back to lie by places: two exchanges, each
of a rank's 1/P of the tokens, in the precision in which attention computes. There are many more places than frames, so
shares are even; the text and the modulation are whole on each rank.

Each rank of a group is given the same batch and gives the same whole prediction, so what computes a loss need not know.
The gradient of a parameter on one rank is that through its own tokens alone, and **the sum over the group is the gradient
of the loss**, which is not scaled: averaged over the group, as data parallelism does, it is to be multiplied by P.

Letters: B batch, T latent frames, S patches per frame, D width, P ranks of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class SequenceGroup:
    """Ranks that share tokens, as one of them sees it."""

    group: dist.ProcessGroup
    rank: int
    """This one's place in the group, from 0."""
    size: int
    """Ranks in the group, P."""
    replica: int
    """Which group of the world it is: the index of this rank's clips for data parallelism."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SequenceGroup:
        return self  # connections cannot be copied; copies of a model share them

    def shares(self, count: int) -> list[int]:
        """How many of ``count`` things each rank has, even up to one."""
        return [count // self.size + (rank < count % self.size) for rank in range(self.size)]

    def own(self, count: int) -> tuple[int, int]:
        """The first of ``count`` things that this rank has, and how many."""
        shares = self.shares(count)
        return sum(shares[: self.rank]), shares[self.rank]

    def is_for_clips(self, clips: int, frames: int, places: int) -> bool:
        """Whether a batch is better shared out in whole clips: the fullest rank has no more then, and nothing is sent.
        So it is with stills, and wherever there are fewer frames or places than ranks."""
        fullest = max(clips * self.shares(frames)[0] * places, clips * frames * self.shares(places)[0])
        return min(frames, places) < self.size or self.shares(clips)[0] * frames * places <= fullest

    def run_by_clips(self, run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """``run`` of this rank's clips, all ranks' results together; inputs and result have clips (B) first."""
        clips = len(inputs[0])
        first, count = self.own(clips)
        # A rank without a clip runs one for nothing: whoever waits for its gradients gets zeros.
        output = run(*(x[min(first, clips - 1) :][: max(count, 1)] for x in inputs))
        return _Gather.apply(output[:count], self, clips, 0)


def sequence_groups(world: int, size: int, timeout: timedelta | None = None) -> SequenceGroup | None:
    """This rank's group where each ``size`` ranks in a row, of ``world``, share tokens; None where each is alone.

    Every rank must call it; torch.distributed must be up. ``timeout`` is of a message within a group, which does not go by
    the world's: torch's own by default. Raises ValueError where ranks are left over.
    """
    if world % size:
        raise ValueError(f"{world} ranks cannot share tokens by {size}: their number must be a multiple")
    if size == 1:
        return None
    group, _ = dist.new_subgroups(size, timeout=timeout)
    replica, rank = divmod(dist.get_rank(), size)
    return SequenceGroup(group, rank, size, replica)


_groups: dict[str, SequenceGroup] = {}
"""Of this process, by name: an operation that can be compiled takes no objects."""


class TokenShards:
    """How the tokens (B T S D) of a batch lie on the ranks of a group: by places (B T S/P D), and for attention in space by
    frames (B T/P S D), up to one place or frame more on the first ranks."""

    def __init__(self, group: SequenceGroup, frames: int, places: int) -> None:
        self.group, self.frames, self.places = group, frames, places
        # Kept as numbers: what is compiled then need not know how they follow from each other.
        _, self.own_frames = group.own(frames)
        self.first_place, self.own_places = group.own(places)
        self.name = group.group.group_name
        _groups[self.name] = group

    def by_frames(self, x: Tensor) -> Tensor:
        """Tokens that lie by places, by frames; in the dtype in which a layer takes them."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        return turn(x, 2, self.places, self.own_frames, self.name)

    def by_places(self, x: Tensor) -> Tensor:
        """Tokens that lie by frames, by places."""
        return turn(x, 1, self.frames, self.own_places, self.name)

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Of what has all places in ``dim`` those of this rank."""
        return x.narrow(dim, self.first_place, self.own_places).contiguous()  # so that the rest can go

    def gather(self, x: Tensor) -> Tensor:
        """Of tokens by places all (B T S D)."""
        return _Gather.apply(x, self.group, self.places, 2)


# To torch.compile an operation like any other: a block stays one graph.
@torch.library.custom_op("kineograph::turn", mutates_args=())
def turn(x: Tensor, joined: int, whole: int, own: int, group: str) -> Tensor:
    """Cut x (B T S D) along one of its dims 1 and 2, which a rank has whole, into the ranks' shares, ``own`` for this one,
    and put together along the other, ``joined``, the ``whole`` of what the ranks send."""
    ranks = _groups[group]
    x = x.movedim(joined, 0)  # what comes from the ranks, one after another, is in order then; what is cut is dim 2
    batch, width = x.shape[1], x.shape[3]
    cut = ranks.shares(x.shape[2])
    sent = torch.cat([piece.flatten() for piece in x.split(cut, dim=2)])
    sizes = [len(x) * share * batch * width for share in cut]
    received = sent.new_empty(whole * own * batch * width)
    received_sizes = [share * own * batch * width for share in ranks.shares(whole)]
    dist.all_to_all_single(received, sent, received_sizes, sizes, group=ranks.group)
    return received.view(whole, batch, own, width).movedim(0, joined).contiguous()


@turn.register_fake
def _(x: Tensor, joined: int, whole: int, own: int, group: str) -> Tensor:
    batch, _, _, width = x.shape
    return x.new_empty((batch, whole, own, width) if joined == 1 else (batch, own, whole, width))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, joined, _, _, group = inputs
    ctx.back = 3 - joined, x.shape[3 - joined], x.shape[joined], group


def _turn_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    return turn(gradient, *ctx.back), None, None, None, None


turn.register_autograd(_turn_back, setup_context=_remember)


class _Gather(Function):
    """What all ranks have along a dimension, whole on each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup, count: int, dim: int) -> Tensor:
        ctx.dim, ctx.own = dim, group.own(count)
        shares = group.shares(count)
        x = x.movedim(dim, 0)
        padded = F.pad(x, (0, 0) * (x.ndim - 1) + (0, shares[0] - len(x))).contiguous()  # one size for all
        received = list(padded.new_empty(group.size, *padded.shape))
        dist.all_gather(received, padded, group=group.group)
        parts = [part[:share] for part, share in zip(received, shares, strict=True)]
        return torch.cat(parts).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Each rank has the gradient of the same loss with respect to all of it."""
        return gradient.narrow(ctx.dim, *ctx.own), None, None, None
