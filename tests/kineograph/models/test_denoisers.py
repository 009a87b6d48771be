"""Models by their kind: a file of any precision is a model in fp32."""

import pytest
import torch
from safetensors.torch import save_file

from kineograph.errors import UserError
from kineograph.models.denoisers import build_denoiser, load_denoiser
from kineograph.models.dit import DiTConfig
from kineograph.models.stdit import STDiTConfig

SMALL = {"in_channels": 4, "width": 32, "depth": 1, "heads": 2}
CONFIGS = [
    STDiTConfig(text_width=12, **SMALL),
    STDiTConfig(text_width=12, rope="time", layout="alternating", null_tokens=3, **SMALL),
    DiTConfig(text_width=12, condition="text", grid=(2, 2), **SMALL),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("config", CONFIGS, ids=["stdit", "alternating", "dit"])
def test_weights_of_any_precision_are_sampled_in_fp32(tmp_path, config, dtype):
    torch.manual_seed(0)
    made = build_denoiser(config).to(dtype)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    loaded = load_denoiser(config.model_dump(), tmp_path / "model.safetensors")
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, made.state_dict()[name].float())
    with torch.inference_mode():
        said = loaded(
            torch.randn(1, 4, 1, 4, 4),
            torch.full((1, 1), 500.0),
            torch.randn(1, 3, 12),
            torch.ones(1, 3, dtype=torch.bool),
            torch.zeros(1),
            torch.tensor([[32.0, 32.0]]),
        )
    assert said.isfinite().all()


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a model of kind 'unet'; known: stdit, dit"):
        load_denoiser({"kind": "unet"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_denoiser(CONFIGS[0].model_dump(), tmp_path / "model.safetensors")
