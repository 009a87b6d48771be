"""The estimate of a training step's memory is checked against what torch keeps of the real model."""

import pytest
import torch

from kineograph.models.presets import find_preset
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.summary import summarise
from pipelines.data.planning.trainer_memory import TrainerModel

FRAMES, SIDE, CHANNELS = 5, 24, 4
TOKENS = FRAMES * (SIDE // 2) ** 2


def kept_bytes(width, depth, mlp_ratio=4.0, text_tokens=8, dtype=torch.float32):
    """Bytes of all tensors, apart from weights, that the forward pass of one clip keeps for the backward pass."""
    config = STDiTConfig(in_channels=CHANNELS, text_width=16, width=width, depth=depth, heads=4, mlp_ratio=mlp_ratio)
    model = STDiT(config).to(dtype)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # holding it, so that no other takes its address
        return tensor

    arguments = (
        torch.randn(1, CHANNELS, FRAMES, SIDE, SIDE, dtype=dtype),
        torch.full((1, FRAMES), 0.5, dtype=dtype),
        torch.randn(1, text_tokens, 16, dtype=dtype),
        torch.ones(1, text_tokens, dtype=torch.bool),
        torch.full((1,), 8.0, dtype=dtype),
        torch.full((1, 2), 256.0, dtype=dtype),
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*arguments)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("width", "depth", "mlp_ratio", "text_tokens"), [(64, 2, 4.0, 8), (128, 2, 2.0, 8), (64, 3, 4.0, 600)]
)
def test_activations_are_within_a_tenth_of_what_the_model_keeps(width, depth, mlp_ratio, text_tokens):
    # Blocks alone: what is outside them is the same for every depth.
    counted = kept_bytes(width, depth, mlp_ratio, text_tokens) - kept_bytes(width, 1, mlp_ratio, text_tokens)
    shape = {"width": width, "mlp_ratio": mlp_ratio, "text_tokens": text_tokens, "activation_bytes": 4}
    estimated = [TrainerModel(depth=d, **shape).clip_bytes(TOKENS) for d in (depth, 1)]
    assert estimated[0] - estimated[1] == pytest.approx(counted, rel=0.1)


def test_in_bf16_without_fused_norms_the_model_keeps_at_most_a_third_more():
    counted = kept_bytes(64, 2, dtype=torch.bfloat16) - kept_bytes(64, 1, dtype=torch.bfloat16)
    estimated = [TrainerModel(width=64, depth=d, text_tokens=8).clip_bytes(TOKENS) for d in (2, 1)]
    assert 1.0 <= counted / (estimated[0] - estimated[1]) <= 4 / 3


def test_parameters_are_within_a_hundredth_of_the_real_models():
    with torch.device("meta"):
        model = STDiT(STDiTConfig(in_channels=4, text_width=1152, width=1152, depth=28, heads=16))
    assert TrainerModel().parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)


def test_a_parameter_takes_what_the_summary_of_a_model_says():
    summary = summarise(find_preset("dit-xl/2"))
    assert summary.trained == summary.total
    assert TrainerModel().state_bytes / TrainerModel().parameters == summary.training_bytes / summary.total


def test_what_fits_fits_and_one_more_does_not():
    trainer, memory = TrainerModel(), 80 * 2**30
    batch = trainer.batch(5 * 256, memory)
    assert trainer.state_bytes + batch * trainer.clip_bytes(5 * 256) <= memory * trainer.usable
    assert trainer.state_bytes + (batch + 1) * trainer.clip_bytes(5 * 256) > memory * trainer.usable


def test_checkpointing_makes_room():
    tokens, memory = 16 * 28 * 16, 80 * 2**30
    assert TrainerModel(checkpointing=True).batch(tokens, memory) > 10 * TrainerModel().batch(tokens, memory)


def test_a_model_that_does_not_fit_leaves_no_room():
    assert TrainerModel().batch(256, 8 * 2**30) == 0
