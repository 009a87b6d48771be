"""ViViT: the factorised encoder of the paper, checked against torch's own transformer and convolution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kineograph.errors import UserError
from kineograph.models.vit import ViT, ViTConfig
from kineograph.models.vivit import VIVIT_PRESETS, ViViT, ViViTConfig

SHAPE = {"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
TINY = ViViTConfig(size=(8, 12), frames=6, patch=(2, 4, 4), temporal_depth=3, **SHAPE)


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter if parameter.ndim == 1 else 0))
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return randomised(ViViT(TINY, 3))


@pytest.fixture
def vit():
    torch.manual_seed(1)
    return randomised(ViT(ViTConfig(size=(8, 12), patch=(4, 4), **SHAPE), 5))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def torch_encoder(ours, x):
    """Class token, positions, torch's pre-norm encoder with the weights of ``ours``, and its last norm."""
    x = torch.cat([ours.class_token.expand(len(x), 1, -1), x], dim=1) + ours.positions
    for block in ours.blocks:
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, nn.functional.gelu, 1e-6, batch_first=True, norm_first=True)
        attention, (up, _, _, down) = block.attention, block.mlp
        query, key_value = attention.query, attention.key_value
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([query.weight, key_value.weight]),
                "self_attn.in_proj_bias": torch.cat([query.bias, key_value.bias]),
                **{f"self_attn.out_proj.{k}": v for k, v in attention.out.state_dict().items()},
                **{f"linear1.{k}": v for k, v in up.state_dict().items()},
                **{f"linear2.{k}": v for k, v in down.state_dict().items()},
                **{f"norm1.{k}": v for k, v in block.attention_norm.state_dict().items()},
                **{f"norm2.{k}": v for k, v in block.mlp_norm.state_dict().items()},
            }
        )
        x = layer.train()(x)  # in eval torch takes a fused path of its own
    return F.layer_norm(x, (16,), ours.norm.weight, ours.norm.bias, 1e-6)


def test_it_is_a_3d_convolution_and_two_encoders_of_torch(tiny):
    video = torch.rand(2, 3, 6, 8, 12) * 2 - 1
    kernel = tiny.embed_patches.weight.unflatten(1, (2, 4, 4, 3)).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        tokens = F.conv3d(video, kernel, tiny.embed_patches.bias, stride=(2, 4, 4))  # B D 3 2 3
        tokens = tokens.permute(0, 2, 3, 4, 1).flatten(2, 3)  # B T S D
        stretches = torch.stack([torch_encoder(tiny.spatial, tokens[:, t])[:, 0] for t in range(3)], dim=1)
        expected = torch_encoder(tiny.temporal, stretches)[:, 0]
        close(tiny.features(video), expected)
        close(tiny(video), tiny.head(expected))


def test_the_base_preset_is_as_large_as_in_the_paper():
    with torch.device("meta"):
        model = ViViT(VIVIT_PRESETS["vivit-b/16x2"], 400)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(115.1e6, abs=0.05e6)


@settings(deadline=None, max_examples=20)
@given(frames=st.integers(1, 15), height=st.integers(1, 17), width=st.integers(1, 17))
def test_any_length_and_size_is_taken_and_the_last_frame_repeated(tiny, frames, height, width):
    video = torch.rand(2, 3, frames, height, width)
    whole = torch.cat([video, video[:, :, -1:]], dim=2) if frames % 2 else video
    with torch.inference_mode():
        assert tiny(video).shape == (2, 3)
        torch.testing.assert_close(tiny.features(video), tiny.features(whole), atol=0, rtol=0)


def test_it_tells_forward_from_backward(tiny):
    video = torch.rand(1, 3, 6, 8, 12)
    with torch.inference_mode():
        assert (tiny.features(video) - tiny.features(video.flip(2))).abs().max() > 0.01


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_central_initialisation_sees_the_middle_frame_of_a_tubelet_as_the_vit_does(vit, frames):
    model = ViViT(TINY.model_copy(update={"patch": (frames, 4, 4), "frames": frames}), 3).eval()
    model.start_from(vit)
    video = torch.rand(2, 3, frames, 8, 12)
    with torch.inference_mode():
        tokens = model.embed_patches(torch.stack([tubelets(v, frames) for v in video]))
        close(model.spatial(tokens, (2, 3))[:, 0], vit.features(video[:, :, frames // 2]))


def tubelets(video, frames):
    """(3 frames 8 12) to (6 frames·4·4·3), by hand."""
    return torch.stack(
        [video[:, :, y : y + 4, x : x + 4].permute(1, 2, 3, 0).flatten() for y in (0, 4) for x in (0, 4, 8)]
    )


@pytest.mark.parametrize("inflation", ["central", "average"])
def test_a_still_video_is_to_the_spatial_transformer_what_its_image_is_to_the_vit(vit, inflation):
    model = ViViT(TINY, 3).eval()
    model.start_from(vit, inflation)
    seen = []
    model.temporal.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 3, 8, 12)
    with torch.inference_mode():
        model(image[:, :, None].expand(-1, -1, 6, -1, -1))
        close(seen[0], vit.features(image)[:, None].expand(-1, 3, -1))


def test_a_vit_of_another_shape_to_start_from_is_refused(vit):
    with pytest.raises(UserError, match="has heads 2, this one 4"):
        ViViT(TINY.model_copy(update={"heads": 4}), 3).start_from(vit)
    with pytest.raises(UserError, match=r"patches of \(4, 4\), this model of \(2, 2\)"):
        ViViT(TINY.model_copy(update={"patch": (2, 2, 2)}), 3).start_from(vit)
