"""The whole chain on one clip: a tiny STDiT learns it by heart, and sampling gives it back."""

import numpy as np
import pytest
import torch

from kineograph.diffusion.conditioning import denoiser
from kineograph.diffusion.flow import FlowConfig
from kineograph.diffusion.gaussian import GaussianConfig
from kineograph.diffusion.guidance import GuidanceConfig
from kineograph.diffusion.processes import build_process
from kineograph.diffusion.samplers import SamplerConfig, sample
from kineograph.metrics.image import psnr
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig, to_unit_range
from kineograph.synth.scene import render, sample_scene

HEIGHT, WIDTH, FRAMES = 24, 32, 9
PIXELS, CHANNELS, BATCH, STEPS = HEIGHT * WIDTH, 24, 8, 400
PROCESSES = {
    "flow": FlowConfig(prediction="clean", shift=4.0),
    "gaussian": GaussianConfig(prediction="clean", zero_terminal_snr=True),
}


def conditions(batch):
    text, mask = torch.ones(batch, 3, 8), torch.ones(batch, 3, dtype=torch.bool)
    return text, mask, torch.full((batch,), 8.0), torch.tensor([[float(HEIGHT), float(WIDTH)]] * batch)


@pytest.fixture(scope="module", params=PROCESSES)
def learned(request):
    """A clip (1 3 T H W) in [-1, 1], its autoencoder, a process and a model that was trained on it alone."""
    frames = render(sample_scene(np.random.default_rng(3)), WIDTH, HEIGHT, np.arange(FRAMES) / 8)
    clip = to_unit_range(torch.from_numpy(frames))[None]
    torch.manual_seed(0)
    vae = PatchPCA(PatchPCAConfig(channels=CHANNELS))
    vae.fit([clip[0]])
    process = build_process(PROCESSES[request.param])
    model = STDiT(STDiTConfig(in_channels=CHANNELS, text_width=8, width=64, depth=2, heads=4))
    data = vae.encode(clip).expand(BATCH, -1, -1, -1, -1)  # B C T H W
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        timestep = process.draw_timesteps(torch.randn(BATCH), PIXELS, data.shape[2])[:, None].expand(-1, data.shape[2])
        noise = torch.randn_like(data)
        output = model(process.add_noise(data, noise, timestep), process.model_time(timestep), *conditions(BATCH))
        optimizer.zero_grad()
        process.losses(output, data, noise, timestep).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return clip, vae, process, model.eval()


@pytest.mark.parametrize(
    "sampler", [SamplerConfig(name="ddim"), SamplerConfig(name="dpm_solver++"), SamplerConfig(name="ancestral")]
)
def test_a_tiny_model_learns_a_clip_by_heart(learned, sampler):
    clip, vae, process, model = learned
    noise = torch.randn(vae.encode(clip).shape, generator=torch.Generator().manual_seed(1))
    path = process.path(20, PIXELS, noise.shape[2])

    def call(x, time, text_on):
        return model(x, time, *conditions(len(x)))

    denoise = denoiser(process, call, path, GuidanceConfig(scale=1.0), noise)
    sampled = vae.decode(sample(sampler, denoise, noise, path, step_noise=lambda step: torch.randn_like(noise)))
    assert float(psnr(sampled, clip, peak=2, dims=4)) >= 30
