"""A clip that two ranks share: what they send, keep and take, beside Ulysses and beside one rank that has it alone.

Ulysses (Jacobs et al. 2023) turns queries, keys and values, so that each rank has all places for a part of the heads, and
what attention gives, back; DSP turns what attention is given and what it gives.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.models.layers import Attention, pack_tokens
from kineograph.models.measure import saved_for_backward
from kineograph.models.positions import rotate
from kineograph.models.sequence import SequenceGroup, TokenShards, sequence_groups, turn
from kineograph.models.stdit import Angles, STDiT, STDiTConfig, modulations
from tests.kineograph.models.sequence_ranks import Sent

RANKS = 2
DEPTH = 2
CONFIG = STDiTConfig(in_channels=4, text_width=16, width=256, heads=8, depth=DEPTH, period=100.0)
LARGE = (1, 24, 16, 16)
"""Clips, frames, rows and columns of patches."""
SMALL = (1, 4, 8, 8)
REPEATS = 4


def measure() -> dict[str, Any]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (alone,) = _run(folder, 1)
        ranks = _run(folder, RANKS)
        whole = load_file(folder / "alone 0.safetensors")["x"]
        worst = max(
            float((load_file(folder / f"{way} {rank}.safetensors")["x"] - part).abs().max())
            for way in ("dsp", "ulysses")
            for rank, part in enumerate(whole.tensor_split(RANKS, dim=2))
        )
    one = alone["alone"]
    dsp, ulysses = ({k: max(rank[way][k] for rank in ranks) for k in one} for way in ("dsp", "ulysses"))
    tokens = LARGE[0] * LARGE[1] * LARGE[2] * LARGE[3]
    # Forward and backward, two exchanges each, of what a rank has the part that is for others, in fp32.
    expected = 2 * 2 * 4 * CONFIG.width * tokens * (RANKS - 1) // RANKS**2
    bf16 = dsp["bf16_bytes"] / ulysses["bf16_bytes"]
    facts = (
        f"{way}: {f['exchanges']:g} exchanges, {f['bytes'] / 1e6:.1f} MB sent, {f['kept'] / 1e6:.0f} MB kept, "
        f"{f['seconds']:.2f} s"
        for way, f in (("DSP", dsp), ("Ulysses", ulysses), ("one rank alone", one))
    )
    return {
        "claim": f"{RANKS} ranks that share a clip send half of what Ulysses would, in fp32 and in bf16, and each keeps "
        "half of the activations",
        "detail": f"each rank, forward and backward of a block of {tokens} tokens: {'; '.join(facts)}. Under bf16 autocast "
        f"DSP sends {bf16:.0%} of what Ulysses does. Outputs differ from one rank's by {worst:.0e} at most",
        "holds": dsp["bytes"] == expected
        and 2 * dsp["bytes"] == ulysses["bytes"]
        and 2 * dsp["bf16_bytes"] == ulysses["bf16_bytes"]
        and dsp["kept"] <= 0.52 * one["kept"]
        and worst < 1e-4,
        "alone": one,
        "dsp": dsp,
        "ulysses": ulysses,
    }


def _run(folder: Path, world: int) -> list[dict[str, dict[str, float]]]:
    """What each rank measured, by way."""
    command = [sys.executable, "-m", "tests.bench.sequence"]
    root = Path(__file__).parents[2]
    ranks = [subprocess.Popen([*command, str(rank), str(world), folder], cwd=root) for rank in range(world)]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")
    return [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]


class UlyssesAttention(nn.Module):
    """Self-attention of tokens of which each rank has some of the places: of all of them, with some of the heads."""

    def __init__(self, attention: Attention, group: SequenceGroup, places: int) -> None:
        super().__init__()
        self.attention, self.places, self.name = attention, places, group.group.group_name
        _, self.own_places = group.own(places)
        _, self.own_heads = group.own(attention.heads)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x (B S/P D); ``angles`` (S d/2) of all places."""
        ours = self.attention
        query = ours.query_norm(ours.query(x).unflatten(-1, (ours.heads, -1)))  # B S/P H d
        key, value = ours.key_value(x).unflatten(-1, (2, ours.heads, -1)).unbind(2)
        packed = torch.cat([part.to(value.dtype) for part in (query, ours.key_norm(key), value)], dim=-1)
        packed = turn(packed, 1, self.places, self.own_heads, self.name)  # B S H/P 3d
        query, key, value = packed.transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(rotate(query, angles), rotate(key, angles), value)
        back = turn(attended.transpose(1, 2), 2, ours.heads, self.own_places, self.name)  # B S/P H d
        return ours.out(back.flatten(2))


class Blocks(nn.Module):
    """The blocks of a model, on this rank's part of tokens."""

    def __init__(self, way: str, group: SequenceGroup | None, size: tuple[int, int, int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = STDiT(CONFIG)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
        self.blocks = model.blocks
        clips, frames, rows, columns = size
        shards = TokenShards(group, frames, rows * columns) if group else None
        place = torch.arange(rows * columns)
        angles = model._positions_in_time(frames, place // columns, place % columns)[0]
        text = pack_tokens(torch.randn(clips, 8, CONFIG.width), torch.ones(clips, 8, dtype=torch.bool))
        shared = torch.randn(clips, frames, modulations(CONFIG, ("space", "time")), CONFIG.width)
        x = torch.randn(clips, frames, rows * columns, CONFIG.width)
        self.x = (shards.cut(x, 2) if shards else x).requires_grad_()
        self.given: tuple[Tensor, Any, Angles, None, TokenShards | None] = (shared, text, angles, None, shards)
        if way == "ulysses":
            assert group is not None
            self.given = (shared, text, angles, None, None)
            for block in self.blocks:
                block.attention["space"] = UlyssesAttention(block.attention["space"], group, rows * columns)

    def forward(self) -> Tensor:
        x = self.x
        for block in self.blocks:
            x = block(x, *self.given)
        return x


def _step(blocks: Blocks) -> Tensor:
    output = blocks()
    output.square().mean().backward()
    return output.detach()


def _measure_way(way: str, group: SequenceGroup | None, sent: Sent, blocks: Blocks, output: Path) -> dict[str, float]:
    """Bytes and exchanges of forward and backward of one block; bytes that it keeps."""
    with saved_for_backward() as saved:
        blocks()
    sent.times = sent.bytes = 0
    save_file({"x": _step(blocks).contiguous()}, output)
    facts = {"exchanges": sent.times / DEPTH, "bytes": sent.bytes / DEPTH, "kept": saved.bytes / DEPTH}
    small = Blocks(way, group, SMALL)
    sent.bytes = 0
    with torch.autocast("cpu", torch.bfloat16):
        loss = small().square().mean()
    loss.backward()
    return {**facts, "bf16_bytes": sent.bytes / DEPTH}


def _seconds(ways: Mapping[str, Blocks]) -> dict[str, float]:
    """The least that forward and backward of a block took in each way, in turns so that noise meets all."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, blocks in ways.items():
            dist.barrier()
            start = time.perf_counter()
            _step(blocks)
            dist.barrier()
            times[way].append(time.perf_counter() - start)
    return {way: min(found) / DEPTH for way, found in times.items()}


def _main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    group = sequence_groups(world, world)
    sent = Sent(rank)
    dist.all_to_all_single = sent.exchange
    ways = ("dsp", "ulysses") if group else ("alone",)
    blocks = {way: Blocks(way, group, LARGE) for way in ways}
    facts = {w: _measure_way(w, group, sent, blocks[w], folder / f"{w} {rank}.safetensors") for w in ways}
    for way, seconds in _seconds(blocks).items():
        facts[way]["seconds"] = seconds
    (folder / f"{world}-{rank}.json").write_text(json.dumps(facts))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
