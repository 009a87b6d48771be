"""Token states of captions, each encoded once and kept by its text and by what encoded it."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.text import (
    MAX_TOKENS,
    Dtype,
    MiniLM,
    TextEncoder,
    absolute_spec,
    encode_captions,
    load_text_encoder,
    parse_spec,
)
from kineograph.store.commit import committed
from kineograph.store.manifest import TextEncoderInfo

Item = dict[str, Any]

# Captions of a batch: a second or so of work.
BATCH_CAPTIONS = 256


class TextEncoding(Config):
    """The encoder of the captions. Where its name says enough, that alone will do: ``text_encoder: minilm``."""

    name: str = MiniLM.name
    """As kineograph.models.text.load_text_encoder takes it: minilm, t5:NAME_OR_FOLDER, clip:NAME_OR_FOLDER,
    open_clip:…, several of them joined by +, or labels where captions are numbers of classes."""
    max_tokens: int = Field(MAX_TOKENS, ge=2)
    """Longer captions are cut off here, start and end tokens counted, or at the encoder's own limit; Open-Sora cuts T5's
    at 120 (v1) and 300 (v1.2)."""
    dtype: Dtype = "float32"
    """Of its weights; bfloat16 is usual for a large T5 on a GPU. States are stored in float16."""
    device: str = "cpu"
    """Where it runs, as torch names it."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            parse_spec(name)
        except UserError as error:
            raise ValueError(str(error)) from error
        return name


@dataclass(frozen=True)
class Encoder:
    """An encoder as it was found on this machine."""

    info: TextEncoderInfo
    key: str
    """Of the states that it makes: equal keys mean equal states. A folder's name."""


def locate_encoder(settings: TextEncoding) -> TextEncoding:
    """``settings`` with folders by their absolute paths, for this run is read elsewhere too.

    Raises UserError, one line, when the encoder is not there and cannot be downloaded. Its weights are not read.
    """
    located = settings.model_copy(update={"name": absolute_spec(settings.name)})
    _load(located)
    return located


def find_encoder(settings: TextEncoding) -> Encoder:
    """The encoder of a recipe. Reads its files once, to know them again."""
    encoder = _load(settings)
    info = TextEncoderInfo(name=encoder.name, width=encoder.width, max_tokens=encoder.max_tokens, dtype=settings.dtype)
    return Encoder(info, _key(encoder, settings))


def states_path(run: Path, caption: str, key: str) -> Path:
    """Where the states of a caption are kept that the encoder of that ``key`` makes."""
    name = hashlib.sha256(caption.encode()).hexdigest()
    return run / "work" / "text" / key / name[:2] / f"{name}.npy"


def embed(run: Path, captions: Sequence[str], settings: TextEncoding, encoder: Encoder, workers: int | None) -> None:
    """Encode those of ``captions`` whose states are not kept yet. Raises UserError when the encoder cannot."""
    wanted = sorted({caption for caption in captions if caption.strip()})
    missing = [caption for caption in wanted if not states_path(run, caption, encoder.key).is_file()]
    if not missing:
        return
    from pipelines.data.stages import Resources, run_stage

    items = [{"captions": missing[start : start + BATCH_CAPTIONS]} for start in range(0, len(missing), BATCH_CAPTIONS)]
    resources = Resources(
        cpus=1,  # the encoder runs on one thread, so that states are the same to the bit
        gpus=1.0 if settings.device.startswith("cuda") else 0.0,  # a T5 fills a good part of a GPU's memory
        at_a_time=1 + len(items) // 8,  # a process loads it in seconds: another one pays from some batches on
    )
    function = partial(embed_batch, run=str(run.resolve()), settings=settings, key=encoder.key)
    run_stage(run, "encoded captions", "batches", items, function, resources, workers)


def embed_batch(item: Item, *, run: str, settings: TextEncoding, key: str) -> Item:
    """Commit the states, float16 (tokens, width), of the captions of ``item``."""
    encoder = _encoder(settings, key)
    for caption in item["captions"]:
        # One at a time: with others beside it the last bits may differ (seen with three tokens), and a killed run leaves
        # other company than an undisturbed one.
        (states,) = encode_captions(encoder, [caption])
        path = states_path(Path(run), caption, key)
        with committed(path, durable=False) as temp, open(temp, "wb") as file:
            np.save(file, states, allow_pickle=False)
    return {"captions": len(item["captions"])}


def states_of(run: Path, caption: str, encoder: Encoder) -> np.ndarray:
    """The states of a caption, float16 (tokens, width); (0, width) where there is none. Raises OSError when they were
    not encoded."""
    if not caption.strip():
        return np.zeros((0, encoder.info.width), np.float16)
    states: np.ndarray = np.load(states_path(run, caption, encoder.key), allow_pickle=False)
    return states


def _load(settings: TextEncoding) -> TextEncoder:
    return load_text_encoder(settings.name, settings.max_tokens, settings.device, settings.dtype)


def _key(encoder: TextEncoder, settings: TextEncoding) -> str:
    # A GPU rounds otherwise than a CPU.
    device = settings.device.split(":")[0]
    return encoder.fingerprint[:32] + ("" if device == "cpu" else f"-{device}")


@lru_cache(maxsize=1)
def _encoder(settings: TextEncoding, key: str) -> TextEncoder:
    """The text encoder, loaded once per process: Ray keeps a stage's processes between its tasks.

    Raises UserError when it is not the one of ``key``: on a cluster, every node has files of its own.
    """
    import torch

    # The number of threads may change the last bits of an embedding, and with them the dataset's version.
    torch.set_num_threads(1)
    encoder = _load(settings)
    if _key(encoder, settings) != key:
        raise UserError(
            f"text encoder {settings.name} has other files on node {socket.gethostname()} than where the run was started: "
            "give all nodes the same, and run the same command again"
        )
    return encoder
