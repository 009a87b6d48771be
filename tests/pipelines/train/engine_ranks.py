"""One rank of test_engine.py: `python engine_ranks.py RANK WORLD FOLDER`. Rank 0 writes weights and moments."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file


class Net(torch.nn.Module):
    """Odd sizes, so that no shard is even, a buffer, and a parameter that is frozen."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.up = torch.nn.Linear(5, 7)
        self.down = torch.nn.Linear(7, 3, bias=False)
        self.frozen = torch.nn.Parameter(torch.full((5,), 1 + 0.1 * seed), requires_grad=False)
        self.register_buffer("centre", torch.full((5,), 0.1 * seed))

    def forward(self, x):
        return self.down(torch.tanh(self.up((x - self.centre) * self.frozen)))


def main(rank, world, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    from pipelines.train.engine import Engine
    from pipelines.train.kinds.diffusion.config import DiffusionRecipe

    def start(stage, seed, precision="fp32"):
        settings = {
            "steps": 100,
            "precision": precision,
            "optimizer": {"weight_decay": 0.01},
            "workers": {"zero_stage": stage, "count": world},
        }
        return Engine(Net(seed), DiffusionRecipe.model_validate(settings))

    def walk(engine, steps):
        norms = []
        for step in steps:
            generator = torch.Generator().manual_seed(1000 * step + rank)
            x, y = torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)
            norms.append(engine.step((engine(x) - y).square().mean(), lr=0.01 / (1 + step)))
        return {"gradient norms": torch.tensor(norms)}

    def state(engine):
        return engine.weights(), engine.optimizer_state()

    def save(name, engine, norms=None):
        weights, moments = state(engine)
        if rank == 0:
            save_file({**weights, **moments, **(norms or {})}, folder / f"{name}.safetensors")

    for stage in (0, 1, 2):
        engine = start(stage, seed=1)
        walk(engine, range(10))
        if stage == 2:
            weights, moments = state(engine)
            save("at 10", engine)
        save(f"straight {stage}", engine, walk(engine, range(10, 20)))
    for stage in (0, 1, 2):
        engine = start(stage, seed=2)
        engine.load(weights, moments, step=10)
        save(f"loaded {stage}", engine)
        save(f"resumed {stage}", engine, walk(engine, range(10, 20)))
    for stage in (1, 2):
        engine = start(stage, seed=1, precision="bf16")
        walk(engine, range(10))
        weights, moments = state(engine)
        save(f"bf16 {stage}", engine, walk(engine, range(10, 20)))
        engine = start(stage, seed=2, precision="bf16")
        engine.load(weights, moments, step=10)
        save(f"bf16 resumed {stage}", engine, walk(engine, range(10, 20)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
