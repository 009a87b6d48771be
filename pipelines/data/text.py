"""Token states of captions, each encoded once and kept by its text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.models.text import MAX_TOKENS, MiniLM, encode_captions
from kineograph.store.commit import committed
from kineograph.store.manifest import TextEncoderInfo
from pipelines.data.config import CurateConfig

Item = dict[str, Any]

# Captions of a batch: a second or so of work.
BATCH_CAPTIONS = 256


def encoder_info(config: CurateConfig) -> TextEncoderInfo:
    """Which encoder the recipe asks for, without loading it."""
    assert config.text_encoder == MiniLM.name
    return TextEncoderInfo(name=MiniLM.name, width=MiniLM.width, max_tokens=MAX_TOKENS)


def states_path(run: Path, caption: str, encoder: str) -> Path:
    """Where the states of a caption are kept."""
    name = hashlib.sha256(caption.encode()).hexdigest()
    return run / "work" / "text" / f"{encoder}-{MAX_TOKENS}" / name[:2] / f"{name}.npy"


def embed(run: Path, captions: Sequence[str], config: CurateConfig) -> None:
    """Encode those of ``captions`` whose states are not kept yet."""
    encoder = config.text_encoder
    wanted = sorted({caption for caption in captions if caption.strip()})
    missing = [caption for caption in wanted if not states_path(run, caption, encoder).is_file()]
    if not missing:
        return
    from pipelines.data.stages import Resources, run_stage

    items = [{"captions": missing[start : start + BATCH_CAPTIONS]} for start in range(0, len(missing), BATCH_CAPTIONS)]
    # One CPU: the encoder runs on one thread, so that states are the same to the bit. A process loads it in seconds,
    # which another one pays for from some batches on.
    resources = Resources(cpus=1, at_a_time=1 + len(items) // 8)
    function = partial(embed_batch, run=str(run.resolve()), encoder=encoder)
    run_stage(run, "encoded captions", "batches", items, function, resources, config.workers)


def embed_batch(item: Item, *, run: str, encoder: str) -> Item:
    """Commit the states, float16 (tokens, width), of the captions of ``item``."""
    captions = item["captions"]
    for caption in captions:
        # One at a time: with others beside it the last bits may differ (seen with three tokens), and a killed run leaves
        # other company than an undisturbed one.
        (states,) = encode_captions(_encoder(encoder), [caption])
        path = states_path(Path(run), caption, encoder)
        with committed(path, durable=False) as temp, open(temp, "wb") as file:
            np.save(file, states, allow_pickle=False)
    return {"captions": len(captions)}


def states_of(run: Path, caption: str, info: TextEncoderInfo) -> np.ndarray:
    """The states of a caption, float16 (tokens, width); (0, width) where there is none. Raises OSError when they were
    not encoded."""
    if not caption.strip():
        return np.zeros((0, info.width), np.float16)
    states: np.ndarray = np.load(states_path(run, caption, info.name), allow_pickle=False)
    return states


@lru_cache(maxsize=1)
def _encoder(name: str) -> Any:
    """The text encoder, loaded once per process: Ray keeps a stage's processes between its tasks."""
    import torch

    from kineograph.models.text import load_text_encoder

    # The number of threads may change the last bits of an embedding, and with them the dataset's version.
    torch.set_num_threads(1)
    return load_text_encoder(name)
