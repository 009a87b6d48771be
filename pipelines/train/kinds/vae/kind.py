"""Kind vae: an autoencoder learns to give clips back. At the end it is in RUN/vae, for latents and for diffusion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kineograph.diffusion.random import normal
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.vae import (
    CONFIG,
    KLAutoencoder,
    KLAutoencoderConfig,
    Reconstruction,
    build_autoencoder,
    load_autoencoder,
    parse_autoencoder_config,
    save_autoencoder,
)
from kineograph.models.vae.perceptual import Perceptual, perceptual_missing
from kineograph.progress import say
from kineograph.store.checkpoints import latest_checkpoint, step_of
from kineograph.store.loader import ClipLoader
from kineograph.store.manifest import AUTOENCODER_FOLDER
from pipelines.train.kinds.base import Findings, Kind, Losses, Model
from pipelines.train.kinds.vae.adversary import Adversary
from pipelines.train.kinds.vae.config import VAERecipe
from pipelines.train.kinds.vae.crop import Crops, Size, crop_size, cut_centre, whole_size
from pipelines.train.kinds.vae.measure import measure
from pipelines.train.kinds.vae.objective import Objective
from pipelines.train.kinds.vae.work import training_flops
from pipelines.train.observer import read_state, write_state
from pipelines.train.plan.plan import Slot, StepPlan
from pipelines.train.ranks import on_all_ranks

V = TypeVar("V")


class Again(Iterable[V]):
    """What ``make`` gives, made anew each time it is gone through, so that it is never held whole."""

    def __init__(self, make: Callable[[], Iterator[V]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[V]:
        return self._make()


Judge = Callable[[Reconstruction, Tensor], tuple[Tensor, dict[str, Tensor]]]

START_FOLDER = "start"
"""Of the run: the autoencoder that training started from."""


class Reconstructor(nn.Module):
    """What the engine wraps: an autoencoder that codes, decodes and is judged in one call."""

    def __init__(self, vae: KLAutoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor, noise: Tensor, judge: Judge) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``judge`` says of the decoded z = mean + exp(logvar / 2)·noise of video (B 3 T H W) in [-1, 1], noise
        (B C T' H' W'), given the decoder's last layer.

        It is called in here because it may take gradients of its own, which must not pass the hooks that the engine puts
        on what comes out.
        """
        mean, logvar = self.vae.posterior(video)
        made = self.vae.reconstruct(mean + logvar.div(2).exp() * noise)
        return judge(Reconstruction(made, mean, logvar), self.vae.last_layer)


class VAEKind(Kind[VAERecipe]):
    """Trains an image or a causal video autoencoder, from scratch or from a folder."""

    recipe = VAERecipe
    headline = ("loss", "psnr", "validation_psnr")
    needs_all_ranks = True  # the discriminator's steps and the adaptive weight are those of the global batch

    @cached_property
    def vae_config(self) -> KLAutoencoderConfig:
        """Of the autoencoder that is trained. Raises UserError when the one to start from cannot be trained."""
        if self.config.vae is not None:
            return self.config.vae
        if self.on_rank:
            raw = json.loads((self.run / START_FOLDER / CONFIG).read_text(encoding="utf-8"))
            config = parse_autoencoder_config(raw)
        else:
            config = load_autoencoder(str(self.config.start)).config
        if not isinstance(config, KLAutoencoderConfig):
            raise UserError(f"start {self.config.start} is a {config.kind}, which is fitted and not trained")
        return config

    @cached_property
    def shape(self) -> tuple[int, tuple[int, int, int]]:
        """Channels and strides of the autoencoder."""
        with torch.device("meta"):
            vae = build_autoencoder(self.vae_config)
        return vae.channels, vae.strides

    # In the driver.

    def check(self) -> None:
        for bucket in self.dataset.buckets:
            size = crop_size(bucket, self.config.crop, self.shape[1])
            if all(size) and min(size[1:]) < self.config.least_side:
                raise UserError(
                    f"of bucket {bucket.name} {size.height}x{size.width} pixels are seen, and the discriminator needs "
                    f"sides of {self.config.least_side}: set loss.adversarial.discriminator.layers lower"
                )
            if not all(size):
                _, rows, columns = self.shape[1]
                raise UserError(
                    f"bucket {bucket.name} is smaller than a latent of {rows}x{columns} pixels, or crop.size is: "
                    "change crop.size, or curate other buckets"
                )

    def facts(self) -> dict[str, Any]:
        channels, strides = self.shape
        missing = self.missing_perceptual()
        return {
            "reads": f"videos, for latents of {channels} channels and strides {strides}",
            "notes": [f"trained without the perceptual loss: {missing}"] if missing else [],
        }

    def identity(self) -> dict[str, Any]:
        return self.describe()

    def prepare(self) -> None:
        if self.config.start is not None:
            save_autoencoder(load_autoencoder(self.config.start), self.run / START_FOLDER)

    def missing_perceptual(self) -> str:
        """What the perceptual loss that the recipe asks for lacks here, "" when nothing does."""
        wanted = self.config.loss.perceptual
        return perceptual_missing(wanted.backbone, wanted.weights) if wanted else ""

    # On every rank.

    def build(self) -> nn.Module:
        vae = build_autoencoder(self.vae_config)
        assert isinstance(vae, KLAutoencoder)
        return Reconstructor(vae)

    def start(self, model: nn.Module) -> None:
        """Take the weights that the recipe starts from, or the principal components of training clips."""
        assert isinstance(model, Reconstructor)
        if self.config.start is not None:
            model.vae.load_state_dict(load_autoencoder(self.run / START_FOLDER).state_dict())
        elif self.vae_config.linear_path:
            model.vae.fit_linear_path(Again(self._videos))

    def place(self, device: torch.device) -> None:
        super().place(device)
        loss = self.config.loss
        self.perceptual: Perceptual | None = None
        if loss.perceptual and on_all_ranks(not self.missing_perceptual(), device):
            self.perceptual = Perceptual(loss.perceptual.backbone, loss.perceptual.weights).to(device)
        self.adversary: Adversary | None = None
        if loss.adversarial:
            self.adversary = Adversary(loss.adversarial, self.config.discriminator, self.config.seed, device)

    def collate(self) -> Crops:
        return Crops(self.config.crop, self.shape[1], self.config.seed)

    def losses(self, model: Model, batch: Tensor, slots: Sequence[Slot], plan: StepPlan) -> Losses:
        channels, strides = self.shape
        _, _, frames, height, width = batch.shape
        latent = (channels, 1 + (frames - 1) // strides[0], height // strides[1], width // strides[2])
        keys = [(self.config.seed, slot.epoch, slot.clip_id, "posterior") for slot in slots]
        noise = torch.stack([normal(latent, *key) for key in keys]).to(batch)
        objective = Objective(
            self.config.loss,
            batch,
            self.perceptual,
            self.adversary if self.adversary and self.adversary.is_active(plan.step) else None,
            plan.of(self._bucket(slots)).count,
        )
        return Losses(*model(batch, noise, objective))

    def extra_state(self) -> dict[str, dict[str, Tensor]]:
        return {"discriminator": self.adversary.state()} if self.adversary else {}

    def load_extra(self, state: dict[str, dict[str, Tensor]]) -> None:
        if self.adversary and "discriminator" in state:
            self.adversary.load(state["discriminator"])

    def _bucket(self, slots: Sequence[Slot]) -> Bucket:
        return Bucket.parse(self.reader.manifest.shards[slots[0].address.shard].bucket)

    # On rank 0.

    def tokens(self, bucket: Bucket) -> int:
        """Latents, over all channels together."""
        frames, height, width = crop_size(bucket, self.config.crop, self.shape[1])
        strides = self.shape[1]
        return (1 + (frames - 1) // strides[0]) * (height // strides[1]) * (width // strides[2])

    def flops(self, bucket: Bucket, means: Mapping[str, float] | None = None) -> float:
        size = crop_size(bucket, self.config.crop, self.shape[1])
        if size not in self._flops:
            self._flops[size] = training_flops(self.vae_config, size)
        return self._flops[size]

    @cached_property
    def _flops(self) -> dict[Size, float]:
        """By what is seen of a clip."""
        return {}

    def example(self, bucket: Bucket, clips: int) -> Tensor:
        return torch.rand(clips, 3, *crop_size(bucket, self.config.crop, self.shape[1])) * 2 - 1

    def looks(self, step: int) -> list[Callable[[nn.Module], Findings]]:
        return [self.validate] if self.dataset.held_out and self.is_due(self.config.validation.every, step) else []

    def validate(self, model: nn.Module) -> Findings:
        """PSNR and SSIM of held-out clips, of images and videos apart, and pictures."""
        assert isinstance(model, Reconstructor)
        config = self.config.validation
        loader = ClipLoader(self.dataset.reader, cache_bytes=0)
        return measure(model.vae, loader, list(self.dataset.held_out.values()), config.pictures, self.device)

    def describe(self) -> dict[str, Any]:
        return {"autoencoder": self.vae_config.model_dump(mode="json")}

    # In the driver, after the last step.

    def finish(self) -> dict[str, Any]:
        """Bring the averaged autoencoder's latents to unit variance and write it as RUN/vae, once for each last step."""
        folder, target = latest_checkpoint(self.run), self.run / AUTOENCODER_FOLDER
        if folder is None:
            return {}
        step = step_of(folder)
        if read_state(self.run).get("exported") != step:
            vae = self.build().get_submodule("vae")
            assert isinstance(vae, KLAutoencoder)
            weights = load_file(folder / "ema.safetensors")
            vae.load_state_dict({name.removeprefix("vae."): tensor for name, tensor in weights.items()})
            vae.eval().fit_latents(self._videos())
            save_autoencoder(vae, target)
            write_state(self.run, {"exported": step})
            say(f"autoencoder of step {step}, its latents of unit variance: {target}")
        return {"autoencoder": str(target)}

    def _videos(self) -> Iterator[Tensor]:
        loader = ClipLoader(self.dataset.reader, cache_bytes=0)
        for entry in self.dataset.spread_entries(self.config.fit_clips):
            size = whole_size(Bucket.parse(entry.bucket), self.shape[1])
            yield cut_centre(loader.load([entry])[0].picture, size)

    def advice(self) -> list[str]:
        folder = self.run / AUTOENCODER_FOLDER
        return [
            f"latents    kineo data run RECIPE --set encode.latents.vae={folder}",
            f"diffusion  kineo train RECIPE --set 'vae={{kind: folder, path: {folder}}}'",
        ]
