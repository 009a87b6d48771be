"""Prompts in, videos out, from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kineograph.diffusion.conditioning import sample_first_frame_first
from kineograph.diffusion.flow import FlowConfig, sample_euler
from kineograph.diffusion.guidance import guided
from kineograph.diffusion.random import normal
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.text import TextEncoder, encode_captions, load_text_encoder
from kineograph.models.vae import PatchPCA, PatchPCAConfig, to_uint8
from kineograph.store.checkpoints import CONFIG, read_config, resolve_checkpoint
from kineograph.store.loader import pad_texts


class TextToVideo:
    """A checkpoint ready to generate.

    >>> video = TextToVideo.load("runs/train").generate(["a red circle moving left"], seeds=[0])[0]  # T H W 3, uint8
    """

    def __init__(self, path: Path, config: dict[str, Any], model: STDiT, vae: PatchPCA, device: str) -> None:
        self.path = path
        self.config = config
        self.model = model
        self.vae = vae
        self.device = device
        self._text_encoder: TextEncoder | None = None

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "cpu", weights: Literal["ema", "model"] = "ema") -> TextToVideo:
        """Load a checkpoint folder, or the newest of a training run. Raises UserError when there is none or it is
        damaged."""
        path = resolve_checkpoint(checkpoint)
        config = read_config(path)
        try:
            model = STDiT(STDiTConfig.model_validate(config["model"]))
            vae = PatchPCA(PatchPCAConfig.model_validate(config["vae"]))
        except (KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {path} cannot be loaded: {CONFIG} does not describe a model: {reason}"
            ) from error
        try:
            model.load_state_dict(load_file(path / f"{weights}.safetensors"))
            vae.load_state_dict(load_file(path / "vae.safetensors"))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"checkpoint {path} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
        return cls(path, config, model.eval().to(device), vae.to(device), device)

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder whose states the model was trained on."""
        if self._text_encoder is None:
            info = self.config["text_encoder"]
            self._text_encoder = load_text_encoder(info["name"], info["max_tokens"], self.device)
        return self._text_encoder

    @property
    def default_bucket(self) -> Bucket:
        """The video bucket that most training clips were in."""
        return Bucket.parse(self.config["buckets"][0])

    def bucket_for(self, size: str | None, seconds: float | None, fps: float) -> Bucket:
        """The bucket of ``size`` ("HxW") and the nearest length that the model can make; None is as trained.

        Raises UserError for a size that cannot be read or made.
        """
        default = self.default_bucket
        try:
            height, width = (int(n) for n in size.lower().split("x")) if size else (default.height, default.width)
        except ValueError:
            raise UserError(f"--size {size!r}: write height and width, e.g. 32x48") from None
        frames = default.frames
        if not (0 < fps < math.inf and (seconds is None or 0 < seconds < math.inf)):
            raise UserError("--seconds and --fps must be numbers above zero")
        if seconds is not None:
            stride = self.vae.strides[0]
            frames = 1 + stride * max(0, round((seconds * fps - 1) / stride))
        if height < 1 or width < 1:
            raise UserError(f"--size {size!r}: height and width must be above zero")
        bucket = Bucket(height, width, frames)
        self.check_bucket(bucket)
        return bucket

    def check_bucket(self, bucket: Bucket) -> None:
        """Raise UserError when the model cannot make frames of this size and number."""
        frames, rows, columns = self.vae.strides
        if bucket.height % rows or bucket.width % columns or (bucket.frames - 1) % frames:
            raise UserError(
                f"cannot make {bucket.frames} frames of {bucket.height}x{bucket.width}: height and width must be "
                f"multiples of {rows} and {columns}, frames 1 + a multiple of {frames}"
            )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        bucket: Bucket | None = None,
        fps: float | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int = 32,
        on_progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """One video per prompt: uint8 (N T H W 3). What is None is as the checkpoint was trained.

        A prompt's noise depends on its seed and the size alone, so a video does not depend on its neighbours.
        ``on_progress(videos)`` hears of every finished batch.
        """
        bucket = bucket or self.default_bucket
        self.check_bucket(bucket)
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        fps = 0.0 if bucket.is_image else (self.config["fps"] if fps is None else fps)
        steps = steps or self.config["sampling"]["steps"]
        scale = self.config["sampling"]["guidance_scale"] if guidance_scale is None else guidance_scale
        videos = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            videos.append(self._batch(prompts[part], seeds[part], bucket, fps, steps, scale))
            if on_progress is not None:
                on_progress(len(videos[-1]))
        return np.concatenate(videos)

    def _batch(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        bucket: Bucket,
        fps: float,
        steps: int,
        scale: float,
    ) -> np.ndarray:
        text, mask = pad_texts(encode_captions(self.text_encoder, prompts))
        n = len(prompts)
        predict = guided(
            self.model,
            text.to(self.device),
            mask.to(self.device),
            torch.full((n,), fps, device=self.device),
            torch.tensor([[bucket.height, bucket.width]] * n, dtype=torch.float32, device=self.device),
            scale,
        )
        frames, rows, columns = self.vae.strides
        shape = (
            self.vae.channels,
            1 + (bucket.frames - 1) // frames,
            bucket.height // rows,
            bucket.width // columns,
        )
        noise = torch.stack([normal(shape, "sample", seed, bucket.name) for seed in seeds]).to(self.device)
        flow = FlowConfig.model_validate(self.config["flow"])
        sample = sample_first_frame_first if self.config["sampling"]["first_frame_first"] else sample_euler
        latents = sample(predict, noise, steps, flow.shift)
        return to_uint8(self.vae.decode(latents)).cpu().numpy()
