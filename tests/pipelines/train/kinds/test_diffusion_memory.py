"""What a denoiser is said to keep for its backward pass is what it keeps."""

import pytest
import torch

from kineograph.models.denoisers import build_denoiser, parse_denoiser
from kineograph.models.execution import ExecutionConfig, prepare
from kineograph.models.flops import count_flops
from kineograph.models.measure import activation_bytes
from pipelines.train.kinds.diffusion.memory import kept_bytes

TEXT, CLIPS, DEPTH, SIZE = 7, 3, 4, (5, 12, 8)
SHAPES = {
    **{name: {"kind": "stdit", "layout": name} for name in ("joined", "alternating", "full")},
    "dit": {"kind": "dit"},
}


def shape_of(name):
    sizes = {"width": 64, "depth": DEPTH, "heads": 4, "in_channels": 4, "text_width": 16}
    return parse_denoiser({**SHAPES[name], **sizes})


def counted(shape, execution, precision):
    """Of a model with all its blocks."""
    torch.manual_seed(0)
    model = build_denoiser(shape)
    prepare(model, execution)
    inputs = (
        torch.randn(CLIPS, 4, *SIZE),
        torch.rand(CLIPS, SIZE[0]),
        torch.randn(CLIPS, TEXT, 16),
        torch.ones(CLIPS, TEXT, dtype=torch.bool),
        torch.full((CLIPS,), 24.0),
        torch.full((CLIPS, 2), 64.0),
    )

    def once():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(*inputs).sum().backward()

    return activation_bytes(once)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [("none", 1), ("selective", 1), ("block", 1), ("block", 2)])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_what_a_deeper_model_keeps_of_more_and_larger_clips(name, recompute, precision):
    shape = shape_of(name)
    execution = ExecutionConfig(recompute=recompute[0], recompute_every=recompute[1])
    tokens = count_flops(shape, SIZE, 0).tokens
    told = kept_bytes(shape, execution, precision, TEXT).of(CLIPS, tokens, DEPTH)
    expected = counted(shape, execution, precision)
    if execution.recompute != "none":  # and a block at a time that is computed again
        shallow = [shape.model_copy(update={"depth": depth}) for depth in (2, 1)]
        two, one = (counted(s, ExecutionConfig(), precision) for s in shallow)
        expected += two - one
    assert told == pytest.approx(expected, rel=0.1)


def test_it_changes_no_random_numbers():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    kept_bytes(shape_of("joined"), ExecutionConfig(), "fp32", TEXT)
    assert torch.equal(torch.rand(3), expected)
