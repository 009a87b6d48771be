"""One rank of test_vae_ranks.py: `python vae_ranks.py RANK WORLD FOLDER`. Rank 0 writes what all came to."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from kineograph.models.vae import Reconstruction
from kineograph.models.vae.losses import VAELossConfig
from pipelines.train.kinds.vae.adversary import Adversary
from pipelines.train.kinds.vae.config import DiscriminatorOptimizerConfig
from pipelines.train.kinds.vae.objective import Objective

SLOTS, STEPS = 5, 3  # odd: two ranks get unequal parts
LOSS = VAELossConfig.model_validate({"kl_weight": 0.1, "adversarial": {"discriminator": {"width": 8, "layers": 2}}})


def main(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{folder}/rendezvous-{world}"
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
    torch.manual_seed(0)
    decoder = torch.nn.Conv3d(3, 3, 3, padding=1)
    videos = torch.rand(STEPS, SLOTS, 3, 5, 16, 16) * 2 - 1
    adversary = Adversary(LOSS.adversarial, DiscriminatorOptimizerConfig(lr=1e-2), 0, torch.device("cpu"))
    found = {}
    for step in range(STEPS):
        video = videos[step, rank::world]
        objective = Objective(LOSS, video, None, adversary, SLOTS)
        out = Reconstruction(decoder(video), video.mean((3, 4)), video.std((3, 4)).log())
        total, parts = objective(out, decoder.weight)
        decoder.zero_grad()
        (total.sum() / SLOTS).backward()
        sums = torch.stack([total.detach().sum(), *(part.sum() for part in parts.values())])
        gradient = decoder.weight.grad.clone()
        for tensor in (sums, gradient):
            if world > 1:
                dist.all_reduce(tensor)
        found |= {f"losses {step}": sums / SLOTS, f"gradient {step}": gradient}
    if rank == 0:
        save_file({**found, **adversary.state()}, folder / f"{world}.safetensors")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
