"""The loss of a step: reconstruction, KL, and where they are wanted the perceptual and the adversarial loss, per clip.

What is a mean over the batch elsewhere is per clip here, and the adaptive weight is that of the global batch, so that any
number of ranks takes the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kineograph.models.vae import Reconstruction
from kineograph.models.vae.losses import VAELossConfig, kl_loss, reconstruction_loss
from kineograph.models.vae.perceptual import Perceptual
from pipelines.train.kinds.vae.adversary import Adversary
from pipelines.train.ranks import sum_over_ranks

MOST_ADAPTIVE_WEIGHT = 1e4


@dataclass(frozen=True)
class Objective:
    """Judges the reconstruction of a rank's clips in one step. Every rank must call it."""

    config: VAELossConfig
    video: Tensor
    """(B 3 T H W) in [-1, 1]: the clips themselves."""
    perceptual: Perceptual | None
    adversary: Adversary | None
    """None where it plays no part in this step; otherwise it learns first, from the same clips."""
    slots: int
    """Clips of the step, over all ranks."""

    def __call__(self, out: Reconstruction, last_layer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each clip (B), and its parts, unweighted and without gradient; ``last_layer`` is a weight of the
        decoder."""
        made, config = out.video.float(), self.config
        looks = reconstruction_loss(made, self.video, config.reconstruction)  # B
        kl = kl_loss(out.mean.float(), out.logvar.float())
        parts = {"reconstruction": looks, "kl": kl, "psnr": clip_psnr(made, self.video)}
        if self.perceptual is not None and config.perceptual is not None:
            parts["perceptual"] = self.perceptual(made, self.video)
            looks = looks + config.perceptual.weight * parts["perceptual"]
        total = looks + config.kl_weight * kl
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.learn(self.video, made, self.slots)
            deceit = parts["adversarial"] = self.adversary.adversarial_losses(made)
            weight = global_adaptive_weight(looks, deceit, last_layer, self.slots)
            parts["adaptive_weight"] = weight.expand(len(made))
            total = total + self.adversary.config.weight * weight * deceit
        return total, {name: part.detach() for name, part in parts.items()}


def clip_psnr(video: Tensor, reference: Tensor) -> Tensor:
    """PSNR in dB of each clip (B), without gradient, the video clamped to [-1, 1]."""
    error = (video.detach().clamp(-1, 1) - reference).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def global_adaptive_weight(looks: Tensor, deceit: Tensor, last_layer: Tensor, slots: int) -> Tensor:
    """‖∇looks‖ / (‖∇deceit‖ + 1e-4) at the decoder's last layer (Esser et al. 2021, VQGAN, eq. 7), of means over the
    ``slots`` of the global batch: what makes both equally strong. ``looks`` and ``deceit`` (B) are this rank's losses. A
    constant to autograd; every rank must call it."""
    gradients = [torch.autograd.grad(loss.sum() / slots, last_layer, retain_graph=True)[0] for loss in (looks, deceit)]
    of_looks, of_deceit = sum_over_ranks([g.float() for g in gradients])
    return (of_looks.norm() / (of_deceit.norm() + 1e-4)).clamp(0, MOST_ADAPTIVE_WEIGHT)
