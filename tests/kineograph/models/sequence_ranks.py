"""One rank of test_sequence.py: `python sequence_ranks.py RANK WORLD SIZE FOLDER CASE…`.

Ranks share tokens by SIZE. Each writes, of every case, what the model gave, and the gradients of all ranks together; into
facts.json what it sent and kept.
"""

import copy
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from kineograph.models.execution import ExecutionConfig, prepare
from kineograph.models.measure import saved_for_backward
from kineograph.models.sequence import sequence_groups
from kineograph.models.stdit import STDiT, STDiTConfig

C, TEXT = 4, 6
VIDEO = {"batch": 1, "frames": 5, "height": 5, "width": 9}  # 15 places: neither divides by 2 or, frames, by 3
OPENSORA = {"pooled_text": False, "text_mlp": True, "null_tokens": 2, "learn_sigma": True}
V1 = {**OPENSORA, "plain_time": True, "qk_norm": "none", "rope": "none", "conditions": ()}
V3 = {
    **OPENSORA,
    "layout": "alternating",
    "qk_norm": "self",
    "rope": "time",
    "conditions": ("fps",),
    "grid": "by_resolution",
}
ALTERNATING = {"layout": "alternating"}
LARGE = {"width": 64, "depth": 4}
LONG = {"frames": 24, "height": 16, "width": 24}
# The model, the size of the batch, how blocks are run.
CASES = {
    "joined": ({}, {}, {}),
    "alternating": (ALTERNATING, {}, {}),
    "learn_sigma": ({"learn_sigma": True}, {}, {}),
    "no pooled text": ({"pooled_text": False}, {}, {}),
    "opensora v1": (V1, {}, {}),
    "opensora v3": (V3 | {"grid_base": 32.0}, {}, {}),
    "given frames": (V3 | {"grid_base": 32.0, "remodulate_given": True}, {"given": 2}, {}),
    "several clips": ({}, {"batch": 3}, {}),
    "few clips": ({}, {"batch": 2}, {}),
    "whole clips": ({}, {"batch": 6}, {}),
    "a still": ({}, {"frames": 1}, {}),
    "stills": ({}, {"batch": 5, "frames": 1}, {}),
    "one place": ({}, {"height": 2, "width": 1}, {}),
    "frames as ranks": (ALTERNATING, {"frames": 3, "height": 6, "width": 4}, {}),
    "recompute block": ({}, {}, {"recompute": "block"}),
    "recompute selective": ({}, {}, {"recompute": "selective"}),
    "recompute alternating": (ALTERNATING, {}, {"recompute": "block"}),
    "bf16": (ALTERNATING, {}, {}),
    "compiled and recomputed": ({}, {}, {"compile": True, "recompute": "block"}),
    "a long clip": (LARGE, LONG, {}),
    "a long clip recomputed": (LARGE, LONG, {"recompute": "block"}),
    "a long clip alternating": (LARGE | ALTERNATING, LONG, {}),
}


def make(case):
    """A model with random weights everywhere, its zero layers too."""
    torch.manual_seed(0)
    model = STDiT(
        STDiTConfig(**{"in_channels": C, "text_width": TEXT, "width": 16, "heads": 2, "depth": 2} | CASES[case][0])
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    prepare(model, ExecutionConfig(**CASES[case][2]), backend="aot_eager")
    return model


def inputs(case):
    """A batch; the third caption and those after it are left out."""
    torch.manual_seed(1)
    sizes = VIDEO | {"given": 0} | CASES[case][1]
    batch, frames = sizes["batch"], sizes["frames"]
    timestep = 1000 * torch.rand(batch, frames)
    timestep[:, : sizes["given"]] = 0
    return (
        torch.randn(batch, C, frames, sizes["height"], sizes["width"]),
        timestep,
        torch.randn(batch, 3, TEXT),
        torch.arange(3) < 3 - 2 * torch.arange(batch)[:, None],
        torch.full((batch,), 8.0),
        torch.full((batch, 2), 32.0),
    )


def run(model, given, case):
    """The output, in the precision that the case asks for."""
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        return model(*given).float()


def loss(output, case, first=0):
    """Of the clips of a batch from ``first`` on, their part of its mean."""
    target = torch.randn(len(inputs(case)[0]), *output.shape[1:], generator=torch.Generator().manual_seed(2))
    return (output - target[first : first + len(output)]).square().sum() / target.numel()


class Sent:
    """How often ranks exchanged tokens, and the bytes that this one sent to others."""

    def __init__(self, rank):
        self.rank, self.times, self.bytes = rank, 0, 0
        self._exchange = dist.all_to_all_single

    def exchange(self, received, sent, output_splits, input_splits, group):
        self.times += 1
        self.bytes += sum(n for rank, n in enumerate(input_splits) if rank != self.rank) * sent.element_size()
        return self._exchange(received, sent, output_splits, input_splits, group=group)


def main(rank, world, size, folder, cases):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    group = sequence_groups(world, size, timedelta(seconds=120))
    sent = Sent(group.rank)
    facts = {}
    for case in cases:
        model = make(case)
        model.sequence = group
        model = copy.deepcopy(model)
        given, replicas = inputs(case), world // size
        clips = len(given[0]) // replicas
        first = clips * group.replica
        mine = [x[first : first + clips] for x in given]
        sent.times = sent.bytes = 0
        dist.all_to_all_single = sent.exchange
        counters.clear()  # of the compiler
        with saved_for_backward() as saved:
            output = run(model, mine, case)
        forward = sent.times
        loss(output, case, first).backward()
        facts[case] = {
            "forward": forward,
            "backward": sent.times - forward,
            "bytes": sent.bytes,
            "kept": saved.bytes,
            "broken": sum(counters["graph_break"].values()),
            "graphs": counters["stats"]["unique_graphs"],
        }
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name in sorted(gradients):
            dist.all_reduce(gradients[name])
        save_file({"output": output.detach().contiguous(), **gradients}, folder / f"{case} {rank}.safetensors")
    (folder / f"facts {rank}.json").write_text(json.dumps({"replica": group.replica, "rank": group.rank, **facts}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5:])
