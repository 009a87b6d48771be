"""STDiT-XL/2 on one GPU: tokens a second, utilisation and memory of a forward pass and of a training step.

``python tests/bench/gpu.py [--json]`` needs torch, numpy, safetensors, pydantic and PyYAML, and nothing installed of this
project; ``python -m tests.bench gpu`` is the same. Without a GPU a small model runs at a small size, which tells whether
everything works and nothing of speed.

A size is latent frames x height x width in pixels, eight pixels a latent: 16x256x256 are 4,096 tokens. So are the numbers
of Open-Sora's STDiT v1 (its docs/acceleration.md), whose latents have as many frames as the video; with an autoencoder of 4
frames a latent, 16 stand for 61 frames of video. Tokens are visual ones: T·S of a clip, times clips, over seconds. MFU
counts the model's products by the shapes that it sees (models/flops.py), HFU what is computed again too, both over the
dense bf16 rate of the data sheet.

A training step is forward, backward and AdamW (fused) on fp32 weights, with products in bf16 by autocast; captions have 120
tokens. Weights and inputs are random numbers, no zeros: a GPU is quicker on those. Each variant gets as many clips as fit,
at most MOST_TOKENS.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "platform"))  # where the project is not installed

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from kineograph.errors import UserError
from kineograph.models.execution import ExecutionConfig, prepare, recompute_factor
from kineograph.models.flops import count_flops, hfu, mfu, peak_flops
from kineograph.models.presets import find_preset
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.progress import say

SIZES = ("16x256x256", "16x512x512", "64x512x512")
MODEL = "stdit-xl/2"
MOST_TOKENS = 2**17
SMALL_SIZES, SMALL_MODEL, SMALL_MOST_TOKENS = ("4x64x64",), "stdit-tiny/2", 128
STRIDE = 8
"""Pixels of a latent's side."""
WARM_UP, REPEATS = 2, 5
TARGET = 0.45
GIB = 2**30
RECOMPUTE = ("none", "selective", "block")


@dataclass(frozen=True)
class Variant:
    """What is run, and how."""

    mode: str
    """forward or train."""
    compile: bool
    recompute: str = "none"


@dataclass
class Row:
    """What a variant does at a size."""

    size: str
    mode: str
    compile: bool
    recompute: str
    clips: int = 0
    """At once; 0 where not even one fits."""
    tokens: int = 0
    """Of all of them."""
    flops: float = 0.0
    """That the model needs for them."""
    seconds: float | None = None
    """The median of REPEATS; None where memory does not suffice."""
    tokens_per_s: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    peak_gib: float | None = None
    """Most that was allocated at once; None without a GPU."""


def variants(modes: Iterable[str] = ("forward", "train"), recompute: Iterable[str] = RECOMPUTE) -> list[Variant]:
    """All of them: a forward pass has nothing to compute again."""
    every = product(modes, (False, True), recompute)
    return list(dict.fromkeys(Variant(mode, c, r if mode == "train" else "none") for mode, c, r in every))


class Bench:
    """A model on the GPU, or a small one on the CPU."""

    def __init__(self, model: str = "", most_tokens: int = 0) -> None:
        self.is_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if self.is_gpu else torch.device("cpu")
        self.precision = "bf16" if self.is_gpu else "fp32"  # which is the quicker one on CPUs
        self.most_tokens = most_tokens or (MOST_TOKENS if self.is_gpu else SMALL_MOST_TOKENS)
        if self.is_gpu:
            torch.set_float32_matmul_precision("high")  # for the few products that autocast leaves in fp32
        preset = find_preset(model or (MODEL if self.is_gpu else SMALL_MODEL))
        if not isinstance(preset.config, STDiTConfig):
            raise UserError(f"{model} is no STDiT: give --model {MODEL}, or another that begins with stdit or opensora")
        self.config, self.text_tokens = preset.config, preset.text_tokens
        torch.manual_seed(0)
        with self.device:
            self.model = STDiT(self.config)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.02)
        self.peak = peak_flops(self.device, self.precision)

    def measure(self, size: str, variant: Variant) -> Row:
        """With as many clips as fit, half as many each time."""
        work = count_flops(self.config, latent_size(size), self.text_tokens)
        execution = self._prepare(variant)
        row = Row(size, **asdict(variant))
        clips = max(1, self.most_tokens // work.tokens)
        while clips and row.seconds is None:
            row.seconds = self._seconds(size, clips, variant.mode == "train")
            self.model.zero_grad(set_to_none=True)
            if row.seconds is None:
                clips //= 2
                gc.collect()  # what failed holds tensors
                torch.cuda.empty_cache()
        if row.seconds is None:
            return row
        again = recompute_factor(execution) if variant.mode == "train" else 1.0
        row.clips, row.tokens = clips, clips * work.tokens
        row.flops = clips * float(work.training if variant.mode == "train" else work.forward)
        row.tokens_per_s = row.tokens / row.seconds
        row.mfu, row.hfu = mfu(row.flops, row.seconds, self.peak), hfu(row.flops, row.seconds, self.peak, again)
        row.peak_gib = torch.cuda.max_memory_allocated(self.device) / GIB if self.is_gpu else None
        return row

    def profile(self, size: str, variant: Variant, clips: int) -> str:
        """Where the time of a step goes, by kernel."""
        self._prepare(variant)
        step = self._step(size, clips, variant.mode == "train")
        for _ in range(WARM_UP):
            step()
        with torch.profiler.profile() as trace:
            step()
            self._wait()
        by = "self_device_time_total" if self.is_gpu else "self_cpu_time_total"
        return str(trace.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))

    def _prepare(self, variant: Variant) -> ExecutionConfig:
        execution = ExecutionConfig(recompute=variant.recompute, compile=variant.compile)
        # Only for a GPU is machine code made; elsewhere it would take minutes and tell nothing.
        prepare(self.model, execution, "inductor" if self.is_gpu else "eager")
        return execution

    def _seconds(self, size: str, clips: int, is_training: bool) -> float | None:
        """Median seconds of a step; None when memory does not suffice."""
        try:
            step = self._step(size, clips, is_training)
            for _ in range(WARM_UP):
                step()
            self._wait()
            if self.is_gpu:
                torch.cuda.reset_peak_memory_stats(self.device)
            return statistics.median(self._timed(step) for _ in range(REPEATS))
        except torch.OutOfMemoryError:
            return None

    def _timed(self, step: Callable[[], None]) -> float:
        if not self.is_gpu:
            begin = time.perf_counter()
            step()
            return time.perf_counter() - begin
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._wait()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def _step(self, size: str, clips: int, is_training: bool) -> Callable[[], None]:
        inputs = self._inputs(latent_size(size), clips)
        target = torch.randn_like(inputs[0])

        def forward() -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                predicted: Tensor = self.model(*inputs)
            return predicted[:, : target.shape[1]]  # without the variance that some models give too

        def infer() -> None:
            with torch.no_grad():
                forward()

        if not is_training:
            return infer
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=self.is_gpu)

        def train() -> None:
            F.mse_loss(forward().float(), target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return train

    def _inputs(self, latent: tuple[int, int, int], clips: int) -> tuple[Tensor, ...]:
        config, device = self.config, self.device
        return (
            torch.randn(clips, config.in_channels, *latent, device=device),
            torch.rand(clips, latent[0], device=device) * 1000,
            torch.randn(clips, self.text_tokens, config.text_width, device=device),
            torch.ones(clips, self.text_tokens, dtype=torch.bool, device=device),
            torch.full((clips,), 24.0, device=device),
            torch.tensor([[float(STRIDE * latent[1]), float(STRIDE * latent[2])]] * clips, device=device),
        )


def latent_size(size: str) -> tuple[int, int, int]:
    """Frames, height and width in latents."""
    frames, height, width = (int(n) for n in size.split("x"))
    return frames, height // STRIDE, width // STRIDE


def measured(bench: Bench, sizes: Iterable[str], chosen: Iterable[Variant]) -> Iterator[Row]:
    """Row by row, said as they come: a run that is cut off has told something."""
    say("       size     mode compiled recompute clips         s  tokens/s    MFU    HFU    GiB")
    for size, variant in product(sizes, list(chosen)):
        row = bench.measure(size, variant)
        head = f"{row.size:>11} {row.mode:>8} {'yes' if row.compile else 'no':>8} {row.recompute:>9} {row.clips:>5}"
        if row.seconds is None:
            say(f"{head}  out of memory")
        else:
            memory = "-" if row.peak_gib is None else f"{row.peak_gib:.1f}"
            rates = f"{row.tokens_per_s:>9,.0f} {row.mfu:>6.1%} {row.hfu:>6.1%} {memory:>6}"
            say(f"{head}  {row.seconds:>8.4f} {rates}")
        yield row


def measure(
    sizes: Sequence[str] = (),
    chosen: Sequence[Variant] = (),
    model: str = "",
    most_tokens: int = 0,
    profile: bool = False,
) -> dict[str, Any]:
    """All variants at all sizes, unless told which; on a CPU small ones. ``profile`` says of the last variant where its
    time goes."""
    counters.clear()
    bench = Bench(model, most_tokens)
    chosen = chosen or variants()
    rows = list(measured(bench, sizes or (SIZES if bench.is_gpu else SMALL_SIZES), chosen))
    if profile and rows[-1].clips:
        say(bench.profile(rows[-1].size, chosen[-1], rows[-1].clips))
    best: dict[str, float] = {}
    for row in rows:
        if row.mode == "train":
            best[row.size] = max(best.get(row.size, 0.0), row.mfu or 0.0)
    name = torch.cuda.get_device_name(bench.device) if bench.is_gpu else "CPU"
    return {
        "claim": f"STDiT-XL/2 trains at {TARGET:.0%} MFU or more on an H200 at each size, in its best variant",
        "detail": f"{name}, {bench.precision}: " + ", ".join(f"{size} {value:.1%}" for size, value in best.items()),
        "holds": min(best.values()) >= TARGET if "H200" in name and best else None,
        "device": name,
        "torch": torch.__version__,
        "precision": bench.precision,
        "peak_tflops": bench.peak / 1e12,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "rows": [asdict(row) for row in rows],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="STDiT on one GPU: tokens a second, utilisation, memory.")
    parser.add_argument("--json", action="store_true", help="One JSON object on stdout.")
    parser.add_argument("--model", default="", help=f"A preset of an STDiT; {MODEL} on a GPU.")
    parser.add_argument("--sizes", nargs="+", default=(), help=f"Latent frames x pixels, such as {' '.join(SIZES)}.")
    parser.add_argument("--modes", nargs="+", default=("forward", "train"), choices=("forward", "train"))
    parser.add_argument("--recompute", nargs="+", default=RECOMPUTE, choices=RECOMPUTE)
    parser.add_argument("--compile", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--most-tokens", type=int, default=0, help=f"Of a step; {MOST_TOKENS} on a GPU.")
    parser.add_argument("--profile", action="store_true", help="Also where the time of the last variant's step goes.")
    given = parser.parse_args(arguments)
    asked = [
        v for v in variants(given.modes, given.recompute) if given.compile in ("both", "yes" if v.compile else "no")
    ]
    facts = measure(given.sizes, asked, given.model, given.most_tokens, given.profile)
    print(json.dumps(facts) if given.json else f"{facts['claim']}\n    {facts['detail']}")
    return 1 if facts["holds"] is False else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
