"""Prompts in, videos out, from a checkpoint.

>>> from kineograph.diffusion.text_to_video import TextToVideo
>>> from kineograph.media.encode import write_mp4
>>> model = TextToVideo.load("runs/train")
>>> video = model.generate(["a red circle moving left"], seeds=[0])[0]  # T H W 3, uint8
>>> write_mp4("red.mp4", video, model.fps)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kineograph.diffusion.conditioning import Given, Model, denoiser
from kineograph.diffusion.few_steps import sampling_path
from kineograph.diffusion.process import Process
from kineograph.diffusion.processes import build_process, parse_diffusion
from kineograph.diffusion.random import normal
from kineograph.diffusion.request import MAX_FRAMES, Known, Request, Sampling, frames_in
from kineograph.diffusion.samplers import sample
from kineograph.diffusion.windows import (
    Joiner,
    Window,
    block,
    decoded,
    encode_given,
    known_ending,
    known_latents,
    latents_of,
    plan_windows,
)
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.denoisers import load_denoiser
from kineograph.models.dit import DiT
from kineograph.models.stdit import STDiT
from kineograph.models.text import TextEncoder, encode_captions, load_text_encoder
from kineograph.models.vae import Autoencoder, Tiling, load_autoencoder, to_uint8, to_unit_range
from kineograph.store.checkpoints import CONFIG, read_config, resolve_checkpoint
from kineograph.store.loader import pad_texts
from kineograph.store.manifest import TextEncoderInfo

OnStep = Callable[[int, int, Tensor], None]
"""(window, step, estimate of the clean latents (B C T H W)), after each step of a sampler."""


class TextToVideo:
    """A checkpoint ready to generate."""

    def __init__(self, path: Path, config: dict[str, Any], model: nn.Module, vae: Autoencoder, device: str) -> None:
        self.path = path
        self.config = config
        self.model = model
        self._bare = model  # itself, also where ``model`` is replaced by one around it
        self.vae = vae
        self.device = device
        self.process: Process = build_process(parse_diffusion(config["diffusion"]))
        self.sampling = Sampling.model_validate(config["sampling"])
        self._text_encoder: TextEncoder | None = None
        self._kept_states: dict[str, np.ndarray] = {}

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str = "cpu",
        weights: Literal["ema", "model"] = "ema",
        vae_tiling: Tiling | None = None,
    ) -> TextToVideo:
        """Load a checkpoint folder, or the newest of a training run. Its autoencoder codes frames in tiles of
        ``vae_tiling``; None is as it was saved. Raises UserError when there is none, it is damaged, or the tiles do not
        fit."""
        path = resolve_checkpoint(checkpoint)
        config = read_config(path)
        try:
            model = load_denoiser(config["model"], path / f"{weights}.safetensors")
            loaded = cls(path, config, model.to(device), load_autoencoder(path / "vae").to(device), device)
        except (KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint {path} cannot be loaded: {CONFIG} is not of a generator: {reason}") from error
        if vae_tiling is not None:
            vae_tiling.check(loaded.vae.strides[1:])
            loaded.vae.tiling = vae_tiling
        return loaded

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder whose states the model was trained on."""
        if self._text_encoder is None:
            info = TextEncoderInfo.model_validate(self.config["text_encoder"])
            self._text_encoder = load_text_encoder(info.name, info.max_tokens, self.device, info.dtype)
        return self._text_encoder

    @property
    def default_bucket(self) -> Bucket:
        """The video bucket that most training clips were in."""
        return Bucket.parse(self.config["buckets"][0])

    @property
    def fps(self) -> float:
        """Frames per second of the training videos."""
        return float(self.config["fps"])

    @property
    def image_fps(self) -> float:
        """What the model was told of an image's frame rate."""
        return float(self.config.get("image_fps", 0.0))

    def bucket_for(self, size: str | None, seconds: float | None, fps: float) -> Bucket:
        """The bucket of ``size`` ("HxW") and ``seconds``; None is as trained. Raises UserError for what is no size."""
        default = self.default_bucket
        try:
            height, width = (int(n) for n in size.lower().split("x")) if size else (default.height, default.width)
        except ValueError:
            raise UserError(f"--size {size!r}: write height and width, e.g. 32x48") from None
        if not (0 < fps < math.inf and (seconds is None or 0 < seconds < math.inf)):
            raise UserError("--seconds and --fps must be numbers above zero")
        if height < 2 or width < 2:
            raise UserError(f"--size {size!r}: height and width must be 2 or more")
        frames = default.frames if seconds is None else frames_in(seconds, fps)
        return Bucket(height, width, frames)

    def request(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        bucket: Bucket | None = None,
        fps: float | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        known: Known | None = None,
    ) -> Request:
        """A request in which what is None is as the checkpoint was trained."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        sampling = self.sampling
        if steps is not None:
            sampling = sampling.model_copy(update={"steps": steps})
        if guidance_scale is not None:
            scaled = sampling.guidance.model_copy(update={"scale": guidance_scale})
            sampling = sampling.model_copy(update={"guidance": scaled})
        bucket = bucket or self.default_bucket
        return Request(prompts, seeds, bucket, self.fps if fps is None else fps, sampling, known=known or {})

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

        ``on_progress(videos)`` hears of every finished batch. For more (given frames, samplers, length without memory)
        see :meth:`request` and :meth:`stream`.
        """
        videos = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            asked = self.request(prompts[part], seeds[part], bucket, fps, steps, guidance_scale)
            videos.append(np.concatenate(list(self.stream(asked)), axis=1))
            if on_progress is not None:
                on_progress(len(videos[-1]))
        return np.concatenate(videos)

    @torch.inference_mode()
    def stream(self, request: Request, on_step: OnStep | None = None) -> Iterator[np.ndarray]:
        """The videos, uint8 (B t H W 3), a stretch of frames at a time: memory does not grow with their length.

        A video's noise depends on its seed, size and place in the video alone, so it does not depend on its neighbours.
        Sizes that the model does not divide are made larger and cut.
        """
        canvas = self._canvas(request.bucket)
        request = replace(request, known={n: _pad(frame, canvas) for n, frame in request.known.items()})
        stride = self.vae.strides[0]
        conditions = self._conditions(request, canvas)
        joiner, left = Joiner(stride), request.bucket.frames
        windows = self.windows(request)
        for number, (window, following) in enumerate(zip(windows, [*windows[1:], None], strict=True)):
            latents = self._sample_window(request, canvas, conditions, window, number, joiner.carried, on_step)
            pieces = self._decoded(latents, window, request.known)
            for frames in joiner.join(pieces, window, following):
                shown = frames[:, :, :left, : request.bucket.height, : request.bucket.width]
                left -= shown.shape[2]
                if shown.shape[2]:
                    yield to_uint8(shown).cpu().numpy()

    def windows(self, request: Request) -> list[Window]:
        """The windows that :meth:`stream` makes. Raises UserError when an overlap does not fit, and for more than
        MAX_FRAMES frames."""
        if request.bucket.frames > MAX_FRAMES:
            raise UserError(f"{request.bucket.frames} frames: a video has at most {MAX_FRAMES} frames")
        stride = self.vae.strides[0]
        window, overlap = self.window_latents(request.window, request.overlap)
        latents = latents_of(request.bucket.frames, stride)
        if window == 1 < latents:
            raise UserError(
                "this model makes single frames: ask for one frame, or give the frames made at once (--window)"
            )
        try:
            return list(plan_windows(latents, window, overlap, known_ending(latents, request.known, stride)))
        except ValueError as error:
            raise UserError(f"this video is longer than the {window} latent frames made at once: {error}") from error

    def window_latents(self, window: int | None, overlap: int | None) -> tuple[int, int]:
        """Latent frames made at once, and shared by windows that follow each other, of a request's ``window`` and
        ``overlap``."""
        trained = max((Bucket.parse(b).frames for b in self.config["buckets"]), default=1)
        latents = latents_of(window or trained, self.vae.strides[0])
        return latents, max(1, min(latents - 1, max(2, latents // 2))) if overlap is None else overlap

    def _canvas(self, bucket: Bucket) -> Bucket:
        """The size in whole latents that holds ``bucket``."""
        _, rows, columns = self.vae.strides
        return Bucket(-(-bucket.height // rows) * rows, -(-bucket.width // columns) * columns, bucket.frames)

    def _conditions(self, request: Request, canvas: Bucket) -> tuple[Tensor, ...]:
        """Text and mask, of the prompts and behind them of the negative prompt (2B …), fps, size (B …)."""
        n = len(request.prompts)
        states = self._text_states([*request.prompts, request.negative_prompt])
        text, mask = pad_texts([*states[:n], *states[n:] * n])  # B prompts, then B times the negative one
        if isinstance(self._bare, DiT):
            self._bare.check_labels(text, mask)
        text, mask = text.to(self.device), mask.to(self.device)
        if isinstance(self._bare, STDiT) and not mask[n:].any():
            text[n:], mask[n:] = self._bare.without_caption(text[:n], mask[:n])
        fps = torch.full((n,), self.image_fps if request.bucket.is_image else request.fps)
        size = torch.tensor([[canvas.height, canvas.width]] * n, dtype=torch.float32)
        return tuple(t.to(self.device) for t in (text, mask, fps, size))

    def _text_states(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Token states (tokens, width) of each caption, encoded alone as those of a dataset are. Those of the call before
        are kept, for the seeds of a prompt follow each other."""
        kept = self._kept_states
        self._kept_states = {
            caption: kept[caption] if caption in kept else encode_captions(self.text_encoder, [caption])[0]
            for caption in dict.fromkeys(captions)
        }
        return [self._kept_states[caption] for caption in captions]

    def _sample_window(
        self,
        request: Request,
        canvas: Bucket,
        conditions: tuple[Tensor, ...],
        window: Window,
        number: int,
        carried: Tensor | None,
        on_step: OnStep | None,
    ) -> Tensor:
        """Latents (B C T H W) of one window."""
        _, rows, columns = self.vae.strides
        shape = (self.vae.channels, window.length, canvas.height // rows, canvas.width // columns)
        latents, mask = encode_given(self.vae, window, carried, request.known, (len(request.seeds), *shape))
        noise = self._noise(request, shape, canvas.name, number, "sample")
        latents, mask = latents.to(self.device), mask.to(self.device)
        if mask.all():
            return latents
        if not mask.any() and request.sampling.first_frame_first and window.length > 1:
            latents[:, :, :1] = self._sample(request, conditions, noise[:, :, :1], None, number, None)
            mask[:, 0] = True
        given = Given(latents, mask) if mask.any() else None
        return self._sample(request, conditions, noise, given, number, on_step)

    def _sample(
        self,
        request: Request,
        conditions: tuple[Tensor, ...],
        noise: Tensor,
        given: Given | None,
        number: int,
        on_step: OnStep | None,
    ) -> Tensor:
        """Sample the frames of noise (B C T H W) that are not given; the others come back as they are."""
        sampling, bucket = request.sampling, request.bucket
        pixels, frames, shape = bucket.height * bucket.width, noise.shape[2], tuple(noise.shape[1:])
        path = sampling_path(
            sampling.sampler,
            lambda steps: self.process.path(steps, pixels, frames),
            sampling.steps,
            self.process.finest,
        )
        model = _with_conditions(self.model, conditions)
        latents = sample(
            sampling.sampler,
            denoiser(self.process, model, path, sampling.guidance, noise, given),
            noise,
            path,
            step_noise=lambda step: self._noise(request, shape, bucket.name, number, f"step {step}"),
            on_step=None if on_step is None else lambda step, clean: on_step(number, step, clean),
        )
        return latents if given is None else torch.where(given.keep, given.latents, latents)

    def _noise(self, request: Request, shape: tuple[int, ...], size: str, window: int, purpose: str) -> Tensor:
        """Standard normal numbers (B, *shape), each video's of its own seed."""
        rows = [normal(shape, purpose, seed, size, window) for seed in request.seeds]
        return torch.stack(rows).to(self.device)

    def _decoded(self, latents: Tensor, window: Window, known: Known) -> Iterator[Tensor]:
        """The frames of a window's latents (B C T H W), (B 3 t H W) at a time, with the known frames themselves where the
        autoencoder's version of them is."""
        stride = self.vae.strides[0]
        whole = known_latents(Window(window.start, 0, window.length), known, stride)
        numbers = {number for latent in whole for number in block(latent, window, stride)}
        first = window.start * stride
        for frames in decoded(self.vae, latents):
            for number in numbers.intersection(range(first, first + frames.shape[2])):
                pixels = to_unit_range(torch.from_numpy(known[number])[..., None, :, :, :]).to(frames)  # (B) 3 1 H W
                frames[:, :, number - first] = pixels.squeeze(-3)
            yield frames
            first += frames.shape[2]


def _pad(frame: np.ndarray, canvas: Bucket) -> np.ndarray:
    """A frame, uint8 (… H W 3), made as large as ``canvas`` by its last row and column. Raises ValueError when larger."""
    height, width = frame.shape[-3:-1]
    missing = ((0, canvas.height - height), (0, canvas.width - width), (0, 0))
    return np.pad(frame, ((0, 0),) * (frame.ndim - 3) + missing, mode="edge")


def _with_conditions(model: nn.Module, conditions: tuple[Tensor, ...]) -> Model:
    """The model as guidance calls it: rows with their prompt where text is on, else with the negative one."""
    text, mask, fps, size = conditions

    def call(x: Tensor, time: Tensor, text_on: Tensor) -> Tensor:
        passes = len(x) // len(fps)
        row = torch.arange(len(fps), device=x.device).repeat(passes)
        chosen = torch.where(text_on, row, row + len(fps))
        output: Tensor = model(x, time, text[chosen], mask[chosen], fps[row], size[row])
        return output

    return call
