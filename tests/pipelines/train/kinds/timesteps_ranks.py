"""One rank of test_timesteps.py: `python timesteps_ranks.py RANK WORLD FOLDER`. Every rank writes the history it has."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from kineograph.diffusion.processes import build_process, parse_diffusion
from pipelines.train.kinds.diffusion.timesteps import Timesteps, Told

SLOTS, STEPS, N = 7, 200, 4


def main(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{folder}/rendezvous-{world}"
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
    config = parse_diffusion({"kind": "gaussian", "schedule": "cosine", "steps": N, "timesteps": "importance"})
    timesteps = Timesteps(config, build_process(config))
    normals = torch.randn(STEPS, 2, SLOTS, generator=torch.Generator().manual_seed(0))
    places = tuple(range(rank, SLOTS, world))
    for step in range(STEPS):
        for part, prediction in enumerate(("rest", "first")):  # as an objective tells them
            drawn = timesteps.draw(normals[step, part, rank::world], 64, 3).timesteps
            losses = drawn + 1 + normals[step, part, rank::world].abs()
            timesteps.tell(Told(prediction, places, drawn, losses))
        timesteps.learn(SLOTS)
    save_file(timesteps.state(), folder / f"{world}-{rank}.safetensors")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
