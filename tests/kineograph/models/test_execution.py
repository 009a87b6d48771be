"""Recomputed and compiled blocks: the same gradients and names, less memory, no work twice that was not asked for."""

import copy
import os
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kineograph.errors import UserError
from kineograph.models.dit import DiT, DiTConfig
from kineograph.models.execution import ExecutionConfig, prepare, recompute_factor
from kineograph.models.measure import activation_bytes
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import CausalVAEConfig, ImageVAEConfig, build_autoencoder
from kineograph.models.vit import ViT, ViTConfig
from kineograph.models.vivit import ViViT, ViViTConfig

C, TEXT = 4, 6
SHAPE = {"in_channels": C, "text_width": TEXT, "width": 16, "heads": 2}
ENCODER = {"size": (8, 8), "width": 16, "depth": 2, "heads": 2}
NAMES = ("joined", "alternating", "full", "opensora-v1", "dit", "vit", "vivit")
has_compiler = shutil.which(os.environ.get("CXX", "g++")) is not None


def make(name, **changes):
    """A model with random weights everywhere, its zero layers too."""
    torch.manual_seed(0)
    if name == "dit":
        model = DiT(DiTConfig(depth=2, **SHAPE))
    elif name == "vit":
        model = ViT(ViTConfig(patch=(4, 4), **ENCODER | changes), 3)
    elif name == "vivit":
        model = ViViT(ViViTConfig(patch=(1, 4, 4), frames=3, temporal_depth=1, **ENCODER), 3)
    elif name == "opensora-v1":  # the first block is given one thing more than the others
        model = STDiT(STDiTConfig(depth=2, plain_time=True, rope="none", null_tokens=2, pooled_text=False, **SHAPE))
    else:
        model = STDiT(STDiTConfig(**{"layout": name, "depth": 2, **SHAPE, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def inputs(name, batch=2, frames=3, side=4):
    torch.manual_seed(1)
    if name == "vit":
        return (torch.randn(batch, 3, 8, 8),)
    if name == "vivit":
        return (torch.randn(batch, 3, frames, 8, 8),)
    mask = torch.arange(3) < 2 * torch.arange(batch)[:, None]  # the first has no caption
    size = torch.full((batch, 2), 32.0)
    text = torch.randn(batch, 3, TEXT)
    return torch.randn(batch, C, frames, side, side), torch.rand(batch, frames), text, mask, torch.ones(batch), size


def gradients(model, given, bf16=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(*given).square().mean()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("recompute", ["selective", "block"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_bit_by_bit(name, recompute):
    model, given = make(name), inputs(name)
    for bf16 in (False, True):
        prepare(model, ExecutionConfig())
        plain = gradients(model, given, bf16)
        for every in (1, 2):
            prepare(model, ExecutionConfig(recompute=recompute, recompute_every=every))
            assert equal(gradients(model, given, bf16), plain)


def test_dropout_draws_the_same_again():
    model, given = make("vit", dropout=0.5), inputs("vit")
    torch.manual_seed(5)
    plain = gradients(model, given)
    prepare(model, ExecutionConfig(recompute="block"))
    torch.manual_seed(5)
    assert equal(gradients(model, given), plain)


@pytest.mark.parametrize("recompute", ["selective", "block"])
def test_several_passes_within_one_autocast(recompute):
    model, given = make("joined"), inputs("joined")

    def both():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*given).square().mean() + model(*given).mean()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = both()
    prepare(model, ExecutionConfig(recompute=recompute))
    # Without recomputation both passes share weights cast to bf16, and their gradients are added in bf16.
    for name, gradient in both().items():
        torch.testing.assert_close(gradient, plain[name], rtol=0.02, atol=0.002)


@pytest.mark.parametrize("name", ["joined", "dit", "vivit"])
def test_names_stay_and_a_copy_has_weights_of_its_own(name):
    model, given = make(name), inputs(name)
    state, parameters, modules = (list(dict(named)) for named in _names(model))
    prepare(model, ExecutionConfig(recompute="selective", compile=True), backend="eager")
    assert [list(dict(named)) for named in _names(model)] == [state, parameters, modules]
    prepare(model, ExecutionConfig(recompute="block"))
    copied = copy.deepcopy(model)
    before = gradients(model, given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert equal(gradients(copied, given), before)
    assert not equal(gradients(model, given), before)


def _names(model):
    return model.state_dict(), model.named_parameters(), model.named_modules()


def test_every_so_many_blocks_are_computed_again():
    model = make("joined", depth=5)
    prepare(model, ExecutionConfig(recompute="block", recompute_every=2))
    runs = [0] * 5
    for index, block in enumerate(model.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    gradients(model, inputs("joined"))
    assert runs == [2, 1, 2, 1, 2]
    with torch.no_grad():  # nothing is kept there, and nothing computed again
        model(*inputs("joined"))
    assert runs == [3, 2, 3, 2, 3]


def flops(model, given):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        gradients(model, given)
    return counter.get_total_flops()


def test_operations_that_are_done_twice():
    model, given = make("joined", depth=4, width=64), inputs("joined", frames=4, side=16)
    needed = flops(model, given)
    for every in (1, 2):
        config = ExecutionConfig(recompute="block", recompute_every=every)
        prepare(model, config)
        assert flops(model, given) / needed == pytest.approx(recompute_factor(config), rel=0.02)


def test_selective_recomputation_does_no_product_of_weights_twice():
    model, given = make("joined"), inputs("joined")
    with FlopCounterMode(display=False) as counter:  # the fused attention of the CPU is not among what it counts
        gradients(model, given)
    prepare(model, ExecutionConfig(recompute="selective"))
    with FlopCounterMode(display=False) as again:
        gradients(model, given)
    assert again.get_total_flops() == counter.get_total_flops()
    assert recompute_factor(ExecutionConfig(recompute="selective")) == 1


def test_linear_layers_that_write_into_what_is_kept_are_refused(monkeypatch):
    def linear(x, weight, bias=None):  # as DeepSpeed's in stage 3
        return x.matmul(weight.t()).add_(bias)

    model = make("vit")
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    prepare(model, ExecutionConfig(recompute="selective"))
    with pytest.raises(UserError, match="memory_efficient_linear=false"):
        gradients(model, inputs("vit"))


def kept_per_token(recompute, width=32):
    """Values that a block of the joined layout keeps of a token, in units of the width."""
    given = inputs("joined", batch=1, frames=2, side=32)
    kept = []
    for depth in (1, 2):
        model = make("joined", depth=depth, width=width)
        prepare(model, ExecutionConfig(recompute=recompute))
        kept.append(activation_bytes(lambda model=model: gradients(model, given)))
    return (kept[1] - kept[0]) / (2 * 16 * 16 * 4 * width)


def test_what_is_kept_of_a_token():
    # block: the input. selective: also query, key, value, attention and out of two attentions along axes (5 each), query,
    # attention and out of that to the text (3), the MLP's two layers (5). Text, modulation and logarithms of attention's
    # sums come on top.
    assert kept_per_token("block") == pytest.approx(1, rel=0.05)
    assert kept_per_token("selective") == pytest.approx(19, rel=0.05)
    assert kept_per_token("none") == pytest.approx(45, rel=0.05)


# Compilation. Where graphs are the matter they are made without machine code, which takes much longer.


def test_one_graph_for_all_sizes():
    model = make("full")
    sizes = [(2, 3, 4), (3, 2, 8), (3, 3, 6), (5, 4, 4)]
    plain = [gradients(model, inputs("full", *size)) for size in sizes]
    counters.clear()
    prepare(model, ExecutionConfig(recompute="selective", compile=True), backend="aot_eager")
    for size, expected in zip(sizes, plain, strict=True):
        assert equal(gradients(model, inputs("full", *size)), expected)
    assert counters["stats"]["unique_graphs"] == 1  # of both blocks
    assert not counters["graph_break"]


@pytest.mark.skipif(not has_compiler, reason="no C++ compiler: torch.compile makes no machine code")
def test_compiled_blocks_differ_by_rounding():
    model, given = make("vit"), inputs("vit")
    plain = gradients(model, given)
    counters.clear()
    prepare(model, ExecutionConfig(compile=True))
    compiled = gradients(model, given)
    assert counters["stats"]["unique_graphs"] == 1
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_compiled_runs_as_it_is_and_is_said_once(capsys):
    def fail(graph, examples):
        raise RuntimeError("no such machine")

    torch._dynamo.register_backend(fail, name="failing")
    model, given = make("vit"), inputs("vit")
    plain = gradients(model, given)
    prepare(model, ExecutionConfig(compile=True), backend="failing")
    assert equal(gradients(model, given), plain)
    assert equal(gradients(model, given), plain)
    said = capsys.readouterr().err
    assert said.count("EncoderBlock runs uncompiled") == 1
    assert "no such machine" in said


# Autoencoders.


def reconstruct(vae, video):
    vae.zero_grad()
    vae.reconstruct(vae.posterior(video).mean).square().mean().backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def test_an_image_autoencoder_computed_again():
    torch.manual_seed(0)
    vae = build_autoencoder(ImageVAEConfig(architecture="image-mini")).train()
    video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    plain, kept = reconstruct(vae, video), activation_bytes(lambda: reconstruct(vae, video))
    for recompute in ("selective", "block"):
        prepare(vae, ExecutionConfig(recompute=recompute))
        assert equal(reconstruct(vae, video), plain)
        assert activation_bytes(lambda: reconstruct(vae, video)) < kept


def test_what_an_autoencoder_cannot_do_is_said():
    vae = build_autoencoder(CausalVAEConfig(architecture="causal-mini"))
    prepare(vae, ExecutionConfig())
    with pytest.raises(UserError, match=r"AutoencoderKLWan cannot be computed again.*recompute=none"):
        prepare(vae, ExecutionConfig(recompute="block"))
    with pytest.raises(UserError, match=r"execution\.compile=false"):
        prepare(vae, ExecutionConfig(compile=True))
