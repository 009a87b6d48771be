"""A rank that trains nothing in the company of others, over gloo, and hangs where it is told to."""

import ctypes
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.train.watch.hang import Beat
from pipelines.train.workers import WorkersConfig

HANG_AT = 3


def main(rank, world, folder, hang):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    workers = WorkersConfig(count=world, hang_timeout_s=3, slow_timeout_s=60)
    with Beat(folder, workers) as beat:
        for step in range(10_000):
            beat.phase("loading", step)
            if step == HANG_AT and rank == world - 1 and hang == "loop":
                while True:
                    time.sleep(0.01)
            if step == HANG_AT and rank == world - 1 and hang == "lock":
                ctypes.PyDLL(None).sleep(600)  # in C, and it keeps the interpreter's lock
            beat.phase("forward", step)
            time.sleep(0.02)
            if step == HANG_AT and rank == 0 and hang == "looking":
                beat.phase("looking", step)
                time.sleep(6)
            beat.phase("update", step)
            dist.all_reduce(torch.ones(1))
            if rank == 0 and step == 30:  # everybody has been heard since the start
                (folder / "warm").touch()
            if hang == "looking" and step == 20:
                break


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
