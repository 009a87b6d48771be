"""The discriminator: trained beside the autoencoder, on all ranks alike, with an optimizer of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from kineograph.diffusion.random import seed_of
from kineograph.models.vae.discriminator import PatchDiscriminator
from kineograph.models.vae.losses import AdversarialConfig
from pipelines.train.kinds.vae.config import DiscriminatorOptimizerConfig
from pipelines.train.ranks import sum_over_ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
STEPS = "steps"


class Adversary:
    """A discriminator that is the same on every rank: equal weights at first, gradients summed over ranks, equal steps."""

    def __init__(
        self, config: AdversarialConfig, optimizer: DiscriminatorOptimizerConfig, seed: int, device: torch.device
    ) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "discriminator"))
            self.discriminator = PatchDiscriminator(config.discriminator).to(device)
        self._optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
        )

    def is_active(self, step: int) -> bool:
        """Whether it plays a part in ``step``."""
        return step >= self.config.start

    def learn(self, real: Tensor, fake: Tensor, slots: int) -> Tensor:
        """One step on this rank's clips (B 3 T H W) of ``slots`` in all. Returns the hinge loss of each (B), without
        gradient: ½·(mean max(0, 1 - D(x)) + mean max(0, 1 + D(x'))) (Lim and Ye 2017)."""
        self.discriminator.requires_grad_(True)
        judged_real, judged_fake = self.discriminator(real), self.discriminator(fake.detach())  # B patches
        losses = ((1 - judged_real).relu().mean(1) + (1 + judged_fake).relu().mean(1)) / 2
        parameters = list(self.discriminator.parameters())
        gradients = torch.autograd.grad(losses.sum() / slots, parameters)
        for parameter, gradient in zip(parameters, sum_over_ranks(gradients), strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses.detach()

    def adversarial_losses(self, fake: Tensor) -> Tensor:
        """-D(x') of each clip (B), with gradients to ``fake`` (B 3 T H W) and none to the discriminator."""
        self.discriminator.requires_grad_(False)
        judged: Tensor = self.discriminator(fake)
        return -judged.mean(1)

    def state(self) -> dict[str, Tensor]:
        """Weights, Adam's moments as ``exp_avg.NAME``, and its count of steps."""
        state = {f"weights.{n}": p for n, p in self.discriminator.state_dict().items()}
        steps = torch.zeros(())
        for name, parameter in self.discriminator.named_parameters():
            kept = self._optimizer.state.get(parameter)
            if kept:
                state |= {f"{moment}.{name}": kept[moment] for moment in MOMENTS}
                steps = kept["step"]
        return {**{n: t.detach().clone() for n, t in state.items()}, STEPS: steps.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        weights = {n.removeprefix("weights."): t for n, t in state.items() if n.startswith("weights.")}
        self.discriminator.load_state_dict(weights)
        for name, parameter in self.discriminator.named_parameters():
            if f"{MOMENTS[0]}.{name}" in state:
                moments = {moment: state[f"{moment}.{name}"].to(parameter).clone() for moment in MOMENTS}
                self._optimizer.state[parameter] = {"step": state[STEPS].clone(), **moments}
