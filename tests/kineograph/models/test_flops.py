"""FLOPs by formula are those that torch counts while the model runs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kineograph.models.dit import LABEL_WIDTH, DiT, DiTConfig, label_tokens
from kineograph.models.flops import count_flops, hfu, mfu, peak_flops, peak_of_gpu
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vit import ViT, ViTConfig
from kineograph.models.vivit import ViViT, ViViTConfig

C, TEXT = 3, 10
LATENT_SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
LAYOUTS = [
    {},
    {"layout": "full", "pooled_text": False},
    {"layout": "alternating", "text_mlp": True, "learn_sigma": True, "null_tokens": 5, "rope": "time"},
    {"plain_time": True, "conditions": (), "pooled_text": False, "rope": "none", "null_tokens": 3, "mlp_ratio": 2.5},
]


def run_flops(model, *arguments, training=False):
    """What torch counts of matrix products and attention, this one in the open: its CPU kernel is not among what torch
    knows, and of GPUs' kernels it also counts the scores that they compute again in the backward pass."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        said = model(*arguments)
        if training:
            said.sum().backward()
    return counter.get_total_flops()


def denoiser_inputs(size, text, batch):
    """Latents, times, captions and conditions of ``batch`` clips; ``text`` (L width) is None for no caption."""
    states = torch.zeros(1, LABEL_WIDTH) if text is None else text
    mask = torch.full((batch, len(states)), text is not None)
    return (
        torch.randn(batch, C, *size),
        torch.full((batch, size[0]), 500.0),
        states.expand(batch, -1, -1),
        mask,
        torch.full((batch,), 8.0),
        torch.tensor([[32.0, 32.0]] * batch),
    )


@settings(deadline=None, max_examples=25)
@given(
    layout=st.sampled_from(LAYOUTS),
    size=LATENT_SIZES,
    patch=st.sampled_from([(1, 1, 1), (1, 2, 2), (1, 1, 3)]),
    depth=st.integers(1, 2),
    captioned=st.booleans(),
    text_tokens=st.integers(1, 6),
    batch=st.integers(1, 2),
)
def test_stdit(layout, size, patch, depth, captioned, text_tokens, batch):
    config = STDiTConfig(in_channels=C, text_width=TEXT, width=32, depth=depth, heads=4, patch=patch, **layout)
    text = torch.randn(text_tokens, TEXT)
    given = list(denoiser_inputs(size, text, batch))
    given[3] = torch.full_like(given[3], captioned)
    counted = count_flops(config, size, text_tokens if captioned else 0)
    ran = run_flops(STDiT(config), *given)
    # A row without a caption still has its padding standardised and pooled, but nothing is projected for it.
    assert batch * counted.forward == ran
    assert counted.tokens == size[0] * math.ceil(size[1] / patch[1]) * math.ceil(size[2] / patch[2])


@settings(deadline=None, max_examples=15)
@given(size=LATENT_SIZES, patch=st.integers(1, 3), text_tokens=st.integers(0, 6), sigma=st.booleans())
def test_dit(size, patch, text_tokens, sigma):
    shape = {"in_channels": C, "width": 32, "depth": 2, "heads": 4, "patch": patch, "learn_sigma": sigma}
    by_text = DiTConfig(text_width=TEXT, **shape)
    text = torch.randn(max(1, text_tokens), TEXT)
    given = list(denoiser_inputs(size, text, 2))
    given[3] = torch.full_like(given[3], text_tokens > 0)
    assert 2 * count_flops(by_text, size, text_tokens).forward == run_flops(DiT(by_text), *given)
    by_class = DiTConfig(text_width=LABEL_WIDTH, condition="class", **shape)
    given = denoiser_inputs(size, label_tokens(torch.tensor([5]))[0], 2)
    assert 2 * count_flops(by_class, size).forward == run_flops(DiT(by_class), *given)


@settings(deadline=None, max_examples=10)
@given(height=st.integers(4, 12), width=st.integers(4, 12), frames=st.integers(1, 6))
def test_classifiers(height, width, frames):
    shape = {"width": 24, "depth": 2, "heads": 3, "size": (8, 8)}
    vit = ViTConfig(patch=(4, 3), **shape)
    images = torch.randn(2, 3, height, width)
    assert 2 * count_flops(vit, (height, width), classes=7).forward == run_flops(ViT(vit, 7), images)
    vivit = ViViTConfig(patch=(2, 4, 4), frames=4, temporal_depth=1, **shape)
    video = torch.randn(2, 3, frames, height, width)
    assert 2 * count_flops(vivit, (frames, height, width), classes=7).forward == run_flops(ViViT(vivit, 7), video)


def training_flops(model, *arguments):
    """What torch counts of a training step, and what it would count more if the gradients of all layers' inputs were
    computed: of what is given, and of what depends on that alone, none is."""
    missing = 0

    def look(layer, inputs, output):
        nonlocal missing
        if not inputs[0].requires_grad:
            missing += 2 * output.numel() * layer.in_features

    hooks = [layer.register_forward_hook(look) for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    ran = run_flops(model, *arguments, training=True)
    for hook in hooks:
        hook.remove()
    return ran, missing


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_step_of_stdit_is_three_forward_passes(layout):
    config = STDiTConfig(in_channels=C, text_width=TEXT, width=64, depth=2, heads=4, **layout)
    size = (3, 8, 8)
    ran, missing = training_flops(STDiT(config), *denoiser_inputs(size, torch.randn(6, TEXT), 1))
    whitening = 2 * 2 * TEXT * TEXT if config.pooled_text else 0  # a product of what is given with what is not trained
    work = count_flops(config, size, 6)
    assert ran + missing + whitening == work.training
    assert missing + whitening < 0.02 * work.training  # already in a model as small as this


def test_a_training_step_of_the_others_is_three_forward_passes():
    dit = DiTConfig(in_channels=C, text_width=TEXT, width=32, depth=2, heads=4)
    given = denoiser_inputs((3, 8, 8), torch.randn(6, TEXT), 1)
    assert sum(training_flops(DiT(dit), *given)) == count_flops(dit, (3, 8, 8), 6).training
    shape = {"width": 24, "depth": 2, "heads": 3, "size": (8, 8)}
    vit = ViTConfig(patch=(4, 4), **shape)
    assert sum(training_flops(ViT(vit, 7), torch.randn(1, 3, 8, 8))) == count_flops(vit, (8, 8), classes=7).training
    vivit = ViViTConfig(patch=(2, 4, 4), frames=4, temporal_depth=1, **shape)
    ran = training_flops(ViViT(vivit, 7), torch.randn(1, 3, 4, 8, 8))
    assert sum(ran) == count_flops(vivit, (4, 8, 8), classes=7).training


def test_the_published_formula_of_stdit_blocks():
    width, places, frames, text = 1152, 256, 16, 120
    tokens = places * frames
    v1 = STDiTConfig(in_channels=4, text_width=4096, pooled_text=False)
    parts = count_flops(v1, (frames, 32, 32), text).parts
    blocks = sum(flops for name, flops in parts.items() if name.startswith("attention") or name == "mlp")
    per_token = 36 * width**2 + 4 * width * (places + frames) + 4 * width * text + 4 * width**2 * text / tokens
    assert blocks / tokens / 28 == pytest.approx(per_token, rel=1e-12)
    v3 = v1.model_copy(update={"layout": "alternating"})
    parts = count_flops(v3, (frames, 32, 32), text).parts
    blocks = sum(flops for name, flops in parts.items() if name.startswith("attention") or name == "mlp")
    per_token = 56 * width**2 + 4 * width * (places + frames) + 8 * width * text + 8 * width**2 * text / tokens
    assert blocks / tokens / 28 == pytest.approx(per_token, rel=1e-12)


def test_the_utilisation_of_open_sora_as_published():
    """28k tokens a second at 16x256x256 on an H800 are about 11 percent (Open-Sora, docs/acceleration.md)."""
    config = STDiTConfig(in_channels=4, text_width=4096, pooled_text=False, text_mlp=True, learn_sigma=True)
    work = count_flops(config, (16, 32, 32), 120)
    used = mfu(28_000 * work.training_per_token, 1.0, peak_of_gpu("NVIDIA H800", "bf16"))
    assert used == pytest.approx(0.11, abs=0.015)


def test_what_is_computed_again_is_use_of_the_hardware_alone():
    assert mfu(30e12, 2.0, 100e12) == pytest.approx(0.15)
    assert hfu(30e12, 2.0, 100e12, recomputed=4 / 3) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("NVIDIA H100 80GB HBM3", "tf32", 494),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla V100-SXM2-32GB", "bf16", 15.7),
    ],
)
def test_a_gpu_is_known_by_the_name_of_its_driver(device, precision, tera):
    assert peak_of_gpu(device, precision) == tera * 1e12


@pytest.mark.parametrize("device", ["NVIDIA A10G", "GeForce GT 710", ""])
def test_a_gpu_that_is_not_listed_is_not_guessed(device):
    assert peak_of_gpu(device, "bf16") is None


def test_a_gpu_computes_fp32_in_tf32_where_torch_may(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert peak_flops("cuda:0", "fp32") == 19.5e12
        torch.set_float32_matmul_precision("high")
        assert peak_flops("cuda:0", "fp32") == 156e12
        assert peak_flops("cuda:0") == 312e12
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_cpu_is_measured_once():
    peak = peak_flops("cpu", "fp32")
    assert 1e8 < peak < 1e14
    assert peak_flops(torch.device("cpu"), "fp32") == peak
