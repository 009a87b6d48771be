"""The benchmark of a GPU runs, on a CPU at a small size, and its numbers go together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kineograph.models.flops import count_flops
from kineograph.models.presets import find_preset
from tests.bench import gpu

FILE = Path(gpu.__file__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run in full")
def test_every_variant_runs():
    facts = gpu.measure()
    assert facts["holds"] is None  # a CPU says nothing of the claim
    rows = facts["rows"]
    assert [(row["mode"], row["compile"], row["recompute"]) for row in rows] == [
        (mode, compiled, recompute)
        for mode, recomputed in (("forward", ["none"]), ("train", ["none", "selective", "block"]))
        for compiled in (False, True)
        for recompute in recomputed
    ]
    assert facts["graphs"] == 4  # of the block: forward alone, and in training for each way to recompute
    assert facts["graph_breaks"] == 0
    forward = count_flops(find_preset(gpu.SMALL_MODEL).config, gpu.latent_size("4x64x64"), 8).forward
    for row in rows:
        assert row["tokens"] == row["clips"] * 4 * 4 * 4
        assert row["flops"] == row["clips"] * forward * (3 if row["mode"] == "train" else 1)
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / facts["peak_tflops"] / 1e12)
        assert row["hfu"] / row["mfu"] == pytest.approx(4 / 3 if row["recompute"] == "block" else 1)


def test_it_takes_fewer_clips_where_memory_does_not_suffice(monkeypatch):
    bench = gpu.Bench()
    tried = []

    def step(size, clips, is_training):
        tried.append(clips)
        if clips > 1:
            raise torch.OutOfMemoryError("as a GPU would")
        return lambda: None

    monkeypatch.setattr(bench, "_step", step)
    bench.most_tokens = 4 * 64
    row = bench.measure("4x64x64", gpu.Variant("train", False))
    assert tried == [4, 2, 1]
    assert row.clips == 1
    bench.most_tokens, tried[:] = 64, []
    monkeypatch.setattr(bench, "_step", lambda *_: step("", 2, True))
    row = bench.measure("4x64x64", gpu.Variant("train", False))
    assert (row.clips, row.seconds, row.mfu) == (0, None, None)


def test_the_file_alone_is_a_command():
    """On a machine where neither the project nor its other libraries are installed."""
    code = f"""
import runpy, sys
sys.modules |= dict.fromkeys(("ray", "deepspeed", "mlflow", "av", "PIL", "pyarrow", "diffusers", "pipelines"))
sys.argv = ["gpu.py", "--json", "--modes", "forward", "--compile", "no"]
runpy.run_path({str(FILE)!r}, run_name="__main__")
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd="/"
    )
    facts = json.loads(said.stdout)
    assert [row["mode"] for row in facts["rows"]] == ["forward"]
