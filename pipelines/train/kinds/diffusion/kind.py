"""Kind diffusion: an STDiT learns to denoise latents of clips, given their captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kineograph.diffusion.processes import build_process
from kineograph.diffusion.request import Sampling
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.diffusion.validation import validation_losses
from kineograph.errors import UserError
from kineograph.media.encode import contact_sheet, write_mp4
from kineograph.media.geometry import Bucket
from kineograph.models.denoisers import build_denoiser, parse_denoiser
from kineograph.models.dit import DiTConfig
from kineograph.models.flops import Flops, count_flops
from kineograph.models.lora import add_lora, merged_state
from kineograph.models.sequence import SequenceGroup
from kineograph.models.stdit import STDiT, STDiTConfig, STDiTShape
from kineograph.models.vae import Autoencoder, load_autoencoder
from kineograph.store.loader import Batch, ClipLoader
from kineograph.store.loader import collate as collate_clips
from kineograph.store.manifest import AUTOENCODER_FOLDER
from kineograph.store.tensors import unpack
from pipelines.train.kinds.base import Collate, Findings, Kind, Losses, Model
from pipelines.train.kinds.diffusion.autoencoder import (
    Chosen,
    check_buckets,
    choose_autoencoder,
    describe_autoencoder,
    make_autoencoder,
)
from pipelines.train.kinds.diffusion.classes import check_classes, check_condition, knows_classes
from pipelines.train.kinds.diffusion.config import DiffusionRecipe
from pipelines.train.kinds.diffusion.memory import KeptBytes, kept_bytes
from pipelines.train.kinds.diffusion.objective import no_tokens, slot_losses, told_fps
from pipelines.train.kinds.diffusion.start import check_start, load_start, with_start
from pipelines.train.kinds.diffusion.timesteps import Timesteps
from pipelines.train.plan.plan import Slot, StepPlan, Stretch

TIMESTEPS = "timesteps"
"""Name of what importance sampling remembers, in checkpoints."""
TEXT_TOKENS = "text_tokens"
"""Name of the mean number of a caption's tokens."""
VALIDATION_BATCH = 32
"""Clips that are validated at once, at most."""
TEXT_FIT_CAPTIONS = 4096
"""Captions, at most, that the model's text norm is fitted on: enough for the covariance of a 384-d encoder."""


class DiffusionKind(Kind[DiffusionRecipe]):
    """Trains an STDiT. Every checkpoint holds the autoencoder too, in the folder vae."""

    recipe = DiffusionRecipe

    @classmethod
    def resolve(cls, config: DiffusionRecipe) -> DiffusionRecipe:
        return with_start(config)

    @cached_property
    def autoencoder(self) -> Chosen:
        """What is known of the autoencoder: on a rank all, in the driver what the recipe asks for."""
        if self.on_rank:
            return describe_autoencoder(self.vae, self.dataset.manifest)
        return choose_autoencoder(self.config.vae, self.dataset.manifest)

    @cached_property
    def vae(self) -> Autoencoder:
        """The run's autoencoder, as prepared."""
        return load_autoencoder(self.run / AUTOENCODER_FOLDER)

    def shape(self) -> STDiTConfig | DiTConfig:
        """The model's, with the channels of latents and text. Raises UserError when the dataset's text is not for it."""
        encoder = self.dataset.manifest.text_encoder
        check_condition(self.config.model, encoder.name)
        channels = {"in_channels": self.autoencoder.channels, "text_width": encoder.width}
        return parse_denoiser({**self.config.model.model_dump(), **channels})

    # In the driver.

    def check(self) -> None:
        check_buckets(self.autoencoder, self.dataset.buckets)
        if self.config.start is not None:
            check_start(self.config.start, self.autoencoder.channels, self.dataset.manifest)
        model = self.shape()
        if knows_classes(model):
            check_classes(model, self.dataset.captions(), "the dataset has a clip of class")
            check_classes(model, self.config.samples.prompts, "samples.prompts asks for class")

    def facts(self) -> dict[str, Any]:
        return {"reads": what_is_read(self)}

    def identity(self) -> dict[str, Any]:
        lora = self.config.lora
        return {
            "model": self.shape().model_dump(mode="json"),
            "autoencoder": autoencoder_facts(self.autoencoder),
            "diffusion": self.config.diffusion.model_dump(mode="json"),
            "lora": lora and lora.model_dump(mode="json"),
        }

    def prepare(self) -> None:
        make_autoencoder(self.config.vae, self.autoencoder, self.dataset, self.run / AUTOENCODER_FOLDER)

    # On every rank.

    def build(self) -> nn.Module:
        return build_denoiser(self.shape())

    def start(self, model: nn.Module) -> None:
        """Take the weights that the recipe starts from, else fit its text norm, if any, to the dataset's captions."""
        if self.config.start is not None:
            load_start(self.config.start, model)
        elif isinstance(model, STDiT) and model.config.pooled_text:
            addresses = self.dataset.spread(TEXT_FIT_CAPTIONS)
            rows = self.dataset.reader.read(addresses, ["caption", "text_embedding"])
            model.text_norm.fit(_caption_states(rows))

    def adapt(self, model: nn.Module) -> None:
        if self.config.lora is not None:
            add_lora(model, self.config.lora)

    def check_sharing(self) -> None:
        if not isinstance(self.config.model, STDiTShape) or self.config.model.layout == "full":
            raise UserError(
                "only an STDiT of layout joined or alternating shares the tokens of a clip: set workers.sequence_parallel=1"
            )

    def share_tokens(self, model: nn.Module, group: SequenceGroup | None) -> None:
        assert isinstance(model, STDiT)
        model.sequence = group

    def plain(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state if self.config.lora is None else merged_state(state, self.config.lora)

    def place(self, device: torch.device) -> None:
        super().place(device)
        self.process = build_process(self.config.diffusion)
        self.timesteps = Timesteps(self.config.diffusion, self.process)
        self.vae.to(device)

    @property
    def reads_latents(self) -> bool:
        return self.autoencoder.reads_latents

    def collate(self) -> Collate:
        return collate_clips

    def losses(self, model: Model, batch: Batch, slots: Sequence[Slot], plan: StepPlan) -> Losses:
        with torch.no_grad():
            latents = batch.latents(self.vae)
        bare = getattr(model, "module", model)
        without_caption = bare.without_caption if isinstance(bare, STDiT) else no_tokens
        losses = slot_losses(self.process, self.timesteps, model, batch, latents, slots, self.config, without_caption)
        tokens = batch.text_mask.sum(), torch.tensor(len(slots))
        return Losses(losses, means={**self.timesteps.take_means(), TEXT_TOKENS: tokens})

    def calls(self, bucket: Bucket) -> int:
        return 2 if self.config.conditioning.factorised and not bucket.is_image else 1

    def mean_names(self) -> list[str]:
        return [*Timesteps.names(), TEXT_TOKENS]

    def after_step(self, plan: StepPlan) -> None:
        self.timesteps.learn(plan.clips)

    def example(self, bucket: Bucket, clips: int) -> Batch:
        encoder = self.dataset.manifest.text_encoder
        text = torch.randn(clips, encoder.max_tokens, encoder.width)
        mask = torch.ones(clips, encoder.max_tokens, dtype=torch.bool)
        size = torch.tensor([[float(bucket.height), float(bucket.width)]]).expand(clips, 2)
        latent = torch.randn(clips, self.autoencoder.channels, *self.latent_size(bucket))
        if self.reads_latents:
            return Batch(None, text, mask, torch.full((clips,), 8.0), size, latent)
        video = torch.rand(clips, 3, bucket.frames, bucket.height, bucket.width) * 2 - 1
        return Batch(video, text, mask, torch.full((clips,), 8.0), size)

    def latent_size(self, bucket: Bucket) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip."""
        frames, rows, columns = self.autoencoder.strides
        return 1 + (bucket.frames - 1) // frames, bucket.height // rows, bucket.width // columns

    def extra_state(self) -> dict[str, dict[str, Tensor]]:
        state = self.timesteps.state()
        return {TIMESTEPS: state} if state else {}

    def load_extra(self, state: dict[str, dict[str, Tensor]]) -> None:
        if TIMESTEPS in state:
            self.timesteps.load(state[TIMESTEPS])

    # On rank 0.

    def tokens(self, bucket: Bucket) -> int:
        return self._work(bucket).tokens

    def flops(self, bucket: Bucket, means: Mapping[str, float] | None = None) -> float:
        tokens = (means or {}).get(TEXT_TOKENS, self.dataset.manifest.text_encoder.max_tokens)
        whole = self._work(bucket, round(tokens)).training
        if self.calls(bucket) == 1:
            return whole
        return whole + self._work(Bucket(bucket.height, bucket.width, 1), round(tokens)).training

    def kept_bytes(self, bucket: Bucket, clips: int) -> float:
        model, copies = self.config.model, self.config.workers.sequence_parallel
        predicted = [bucket] if self.calls(bucket) == 1 else [bucket, Bucket(bucket.height, bucket.width, 1)]
        return sum(self._kept.of(clips, -(-self.tokens(b) // copies), model.depth) for b in predicted)

    @cached_property
    def _kept(self) -> KeptBytes:
        config, text_tokens = self.config, self.dataset.manifest.text_encoder.max_tokens
        return kept_bytes(self.shape(), config.execution, config.precision, text_tokens)

    def _work(self, bucket: Bucket, text_tokens: int = 0) -> Flops:
        """Of one prediction of a whole clip."""
        return count_flops(self.shape(), self.latent_size(bucket), text_tokens)

    def looks(self, step: int) -> list[Callable[[nn.Module], Findings]]:
        due: list[Callable[[nn.Module], Findings]] = []
        if self.dataset.held_out and self.is_due(self.config.validation.every, step):
            due.append(self.validate)
        if self.config.samples.prompts and self.is_due(self.config.samples.every, step):
            due.append(partial(self.sample, step=step))
        return due

    def validate(self, model: nn.Module) -> Findings:
        """Loss on held-out clips at the recipe's timesteps, of all clips and by bucket."""
        timesteps = self.config.validation.timesteps
        loader = ClipLoader(self.dataset.reader, cache_bytes=0, latents=self.reads_latents)
        rows: dict[str, Tensor] = {}
        for bucket, entries in self.dataset.held_out.items():
            parts = []
            for start in range(0, len(entries), VALIDATION_BATCH):
                batch = loader.batch(entries[start : start + VALIDATION_BATCH]).to(self.device)
                latents = batch.latents(self.vae)
                conditions = (batch.text, batch.text_mask, told_fps(batch.fps, self.config), batch.size)
                ids = [e.clip_id for e in entries[start : start + VALIDATION_BATCH]]
                parts.append(validation_losses(self.process, model, latents, *conditions, ids, timesteps))
            rows[bucket.name] = torch.cat(parts)
        means = torch.cat(list(rows.values())).mean(0).tolist()
        by_timestep = {f"validation_loss_t{t:g}": mean for t, mean in zip(timesteps, means, strict=True)}
        by_bucket = {f"validation_loss_{name}": float(losses.mean()) for name, losses in rows.items()}
        return Findings({"validation_loss": sum(means) / len(means), **by_timestep, **by_bucket})

    def sample(self, model: nn.Module, step: int) -> Findings:
        """A video of every prompt, and all of them on a contact sheet."""
        prompts = list(self.config.samples.prompts)
        generator = TextToVideo(self.run, self.describe(), model, self.vae, str(self.device))
        videos = generator.generate(prompts, seeds=list(range(len(prompts))))
        files = [self.run / "samples" / f"step-{step:08d}" / f"{number:02d}.mp4" for number in range(len(videos))]
        for path, video in zip(files, videos, strict=True):
            write_mp4(path, video, generator.config["fps"])
        return Findings(images={"samples": contact_sheet(list(videos), prompts)}, files=files)

    def describe(self) -> dict[str, Any]:
        config, dataset = self.config, self.dataset
        buckets = dataset.buckets
        (first,) = self.plan.slots(Stretch(buckets[0], 0, 1, 0))
        fps = dataset.reader.read([first.address], ["fps"])[0]["fps"] or 1.0  # a second for an image, where all are
        return {
            "model": self.shape().model_dump(mode="json"),
            "autoencoder": autoencoder_facts(self.autoencoder),
            "diffusion": config.diffusion.model_dump(mode="json"),
            "lora": config.lora and config.lora.model_dump(mode="json"),
            "text_encoder": dataset.manifest.text_encoder.model_dump(),
            "buckets": [bucket.name for bucket in buckets],
            "fps": fps,
            "image_fps": config.conditioning.image_fps,
            "sampling": Sampling(
                steps=config.samples.steps,
                sampler=config.samples.sampler,
                guidance=config.samples.guidance,
                first_frame_first=config.conditioning.factorised,
            ).model_dump(mode="json"),
        }

    def folders(self) -> dict[str, Path]:
        return {AUTOENCODER_FOLDER: self.run / AUTOENCODER_FOLDER}

    def advice(self) -> list[str]:
        return [f'generate   kineo generate --checkpoint {self.run} --prompt "…" --out x.mp4']


def autoencoder_facts(chosen: Chosen) -> dict[str, Any]:
    """``chosen`` as JSON; without a digest where it is still to be fitted."""
    facts = {"kind": chosen.kind, "channels": chosen.channels, "strides": list(chosen.strides)}
    return {**facts, "digest": chosen.digest} if chosen.digest else facts


def what_is_read(kind: DiffusionKind) -> str:
    """What training sees of the dataset's clips, in words."""
    made = kind.dataset.manifest.autoencoder
    if made is None:
        return "videos"
    if not kind.autoencoder.reads_latents:
        return f"videos: its latents are of {made.channels} channels and strides {made.strides}, not the recipe's"
    return f"latents ({made.dtype}, autoencoder {made.digest[:12]})"


def _caption_states(rows: list[dict[str, Any]]) -> list[Tensor]:
    by_caption = {row["caption"]: row["text_embedding"] for row in rows if row["caption"].strip()}
    return [torch.from_numpy(unpack(by_caption[c]).astype("float32")) for c in sorted(by_caption)]
