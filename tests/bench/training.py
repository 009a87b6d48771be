"""One training step under the engine (DeepSpeed ZeRO-2, one rank) against a bare loop of the same model."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kineograph.diffusion.flow import add_noise, flow_loss
from kineograph.models.stdit import STDiT, STDiTConfig
from pipelines.train.engine import Engine
from pipelines.train.kinds.diffusion.config import DiffusionRecipe

STEPS = 30
CONFIG = DiffusionRecipe(steps=1000)


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants a launcher to have said so
    shape = STDiTConfig(in_channels=16, text_width=384, **CONFIG.model.model_dump())
    with TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1)
        try:
            engine = Engine(STDiT(shape), CONFIG)
            bare, optimizer = _bare(shape)
            bare_s, engine_s = _alternate(
                lambda loss: _bare_step(bare, optimizer, loss), bare, lambda loss: engine.step(loss, 1e-3), engine
            )
        finally:
            dist.destroy_process_group()
    overhead = engine_s / bare_s - 1
    return {
        "claim": "the engine's step takes at most 35% longer than a bare loop's at the demo's size, where a step is short",
        "detail": f"{overhead:+.0%} (bare {bare_s * 1e3:.0f} ms, engine {engine_s * 1e3:.0f} ms)",
        "holds": overhead <= 0.35,
        "overhead": overhead,
    }


def _alternate(
    bare_step: Callable[[Tensor], object],
    bare: Callable[..., Tensor],
    engine_step: Callable[[Tensor], object],
    engine: Callable[..., Tensor],
) -> tuple[float, float]:
    """Median seconds of a step of each, taken in turns so that the machine's noise meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for step in range(STEPS):
        for kept, update, model in ((times[0], bare_step, bare), (times[1], engine_step, engine)):
            start = time.perf_counter()
            update(_loss(model, step))
            if step >= 3:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _loss(model: Callable[..., Tensor], step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(16, 16, 3, 8, 8, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    timestep = torch.rand(16, 3, generator=generator)
    text, mask = torch.randn(16, 8, 384, generator=generator), torch.ones(16, 8, dtype=torch.bool)
    size = torch.full((16, 2), 32.0)
    predicted = model(add_noise(latents, noise, timestep), timestep, text, mask, torch.full((16,), 8.0), size)
    return flow_loss(predicted, latents, noise).mean()


def _bare(shape: STDiTConfig) -> tuple[STDiT, torch.optim.Optimizer]:
    model = STDiT(shape)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def _bare_step(model: STDiT, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
