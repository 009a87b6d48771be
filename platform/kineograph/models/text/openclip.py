"""Text towers of open_clip's models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.models.text.files import TOKENIZER, digests, download, loading, local_folder, matching, tokenizer_folder
from kineograph.models.text.interface import MAX_TOKENS, STATES_VERSION, Dtype, batches, check_finite

CONFIG = "open_clip_config.json"
# Those that open_clip itself prefers to every other file of a folder.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_PRECISION = {"float32": "fp32", "float16": "pure_fp16", "bfloat16": "pure_bf16"}


class Source(NamedTuple):
    """What open_clip is asked for."""

    model: str
    """An architecture, or local-dir:FOLDER."""
    config: dict[str, Any]
    """Of the model, as open_clip writes it."""
    weights: Path
    tokenizer: tuple[Path, ...] = ()
    """Files of its own tokenizer; none where it is the one that comes with open_clip."""
    quick_gelu: bool = False
    """Whether the weights were trained with QuickGELU though the architecture's config does not say so."""


class OpenCLIP:
    """The text tower of a model of open_clip: its last hidden states, normalised, from the start to the end token.

    The pooled state is dropped. Every caption is padded to the model's full context, as in its training, so that none
    depends on its neighbours. Source: Ilharco et al. 2021, OpenCLIP; Cherti et al. 2023, Reproducible scaling laws.
    """

    kind = "open_clip"

    def __init__(self, where: str, max_tokens: int = MAX_TOKENS, device: str = "cpu", dtype: Dtype = "float32") -> None:
        self.name = f"{self.kind}:{where}"
        self.source = locate(self.name, where)
        text = self.source.config["text_cfg"]
        self.context: int = text.get("context_length", 77)
        self.width: int = text.get("width", 512)
        self.max_tokens = min(max_tokens, self.context)
        self.device = device
        self.dtype = dtype

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the model's config, its weights and tokenizer, max_tokens and dtype."""
        files = digests([(path.name, path) for path in self.source.tokenizer] + [("weights", self.source.weights)])
        return digest(
            [STATES_VERSION, self.kind, self.source.config, self.source.quick_gelu, files, self.max_tokens, self.dtype]
        )

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float16 array (tokens, width) per caption; equal captions are encoded once."""
        import torch

        states: dict[str, np.ndarray] = {}
        for batch in batches(list(dict.fromkeys(captions))):
            ids, lengths = self._tokens(batch)  # B L, B
            with torch.inference_mode():
                hidden = self._model.forward_intermediates(
                    text=ids.to(self.device), text_indices=1, normalize_intermediates=True, intermediates_only=True
                )["text_intermediates"][-1]  # B L D
            half = check_finite(hidden.half().cpu().numpy(), self.name)
            states.update({c: row[:n].copy() for c, row, n in zip(batch, half, lengths, strict=True)})
        return [states[caption] for caption in captions]

    def _tokens(self, captions: Sequence[str]) -> tuple[Any, list[int]]:
        """Token ids (B, context), cut at max_tokens and padded, and how many of each are not padding."""
        import torch

        from_hub = hasattr(self._tokenizer, "tokenizer")
        padding = self._tokenizer.tokenizer.pad_token_id if from_hub else 0
        cut = self._tokenizer(list(captions), context_length=self.max_tokens)  # B L
        # CLIP's own tokenizer pads with the id of a real token, so the end token marks the end.
        real = cut != padding if from_hub else cut == self._tokenizer.eot_token_id
        last = (real * torch.arange(cut.shape[1])).amax(1)
        return torch.nn.functional.pad(cut, (0, self.context - cut.shape[1]), value=padding), (last + 1).tolist()

    @cached_property
    def _tokenizer(self) -> Any:
        with loading(self.name):
            # The config in a folder may ask for more than open_clip should grant; what is given here wins over it.
            options = {"trust_remote_code": False, "local_files_only": True} if self.source.tokenizer else {}
            return _open_clip().get_tokenizer(self.source.model, context_length=self.context, **options)

    @cached_property
    def _model(self) -> Any:
        in_folder = self.source.model.startswith("local-dir:")
        with loading(self.name):
            model = _open_clip().create_model(
                self.source.model,
                pretrained=None if in_folder else str(self.source.weights),
                precision=_PRECISION[self.dtype],
                force_quick_gelu=self.source.quick_gelu,
                require_pretrained=True,
            )
        model.visual = None  # half of the memory
        return model.eval().to(self.device)


def locate(name: str, where: str) -> Source:
    """What ``where`` names: ARCHITECTURE/TAG, ARCHITECTURE/FILE.safetensors, hf-hub:NAME, local-dir:FOLDER or FOLDER.

    Raises UserError when it cannot be found, its weights are not safetensors, or its text tower is not a CLIP's.
    """
    if where.startswith("hf-hub:"):
        return _in_folder(name, download(name, where.removeprefix("hf-hub:"), (CONFIG, *WEIGHTS, *TOKENIZER)))
    folder = local_folder(where.removeprefix("local-dir:"))
    if folder is not None:
        return _in_folder(name, folder)
    if where.startswith("local-dir:"):
        raise UserError(f"text encoder {name}: there is no such folder")
    architecture, _, pretrained = where.partition("/")
    config = _open_clip().get_model_config(architecture)
    if config is None:
        raise UserError(f"text encoder {name}: open_clip has no architecture {architecture!r}; ViT-B-32 is one")
    _check_tower(name, config)
    if "hf_tokenizer_name" in config["text_cfg"]:
        raise UserError(f"text encoder {name}: {architecture} has its tokenizer on the hub: use open_clip:hf-hub:NAME")
    tag = _open_clip().get_pretrained_cfg(architecture, pretrained)
    if tag:
        return Source(architecture, config, _published(name, tag), quick_gelu=bool(tag.get("quick_gelu")))
    file = Path(pretrained).expanduser()
    if not file.is_file() or file.suffix != ".safetensors":
        tags = ", ".join(_open_clip().list_pretrained_tags_by_model(architecture)) or "no tags"
        raise UserError(f"text encoder {name}: give a .safetensors file or a tag; {architecture} has {tags}")
    return Source(architecture, config, file)


def _in_folder(name: str, folder: Path) -> Source:
    if not (folder / CONFIG).is_file():
        raise UserError(f"text encoder {name}: no {CONFIG} in {folder}: give a folder that open_clip pushed to the hub")
    with loading(name):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        own_tokenizer = bool(config["text_cfg"].get("hf_tokenizer_name"))
    _check_tower(name, config)
    weights = matching(folder, WEIGHTS)
    if not weights:
        raise UserError(f"text encoder {name}: no {WEIGHTS[0]} in {folder}; other formats are not opened")
    tokenizer = matching(tokenizer_folder(name, folder), TOKENIZER) if own_tokenizer else []
    return Source(f"local-dir:{folder}", config, weights[0], tuple(tokenizer))


def _check_tower(name: str, config: dict[str, Any]) -> None:
    """Raise UserError for a text tower whose states are not read here: of another library, or CoCa's."""
    text = config["text_cfg"]
    if "hf_model_name" in text or text.get("embed_cls") or text.get("tokenizer_mode") or "multimodal_cfg" in config:
        raise UserError(f"text encoder {name}: its text tower is not a plain CLIP transformer; use another model")


def _published(name: str, tag: dict[str, Any]) -> Path:
    """The safetensors file of a tag, from the hub or from what was downloaded before."""
    repo, _, file = tag.get("hf_hub", "").rpartition("/")
    if not repo:
        raise UserError(f"text encoder {name}: it is published as a pickle only; convert it and give the file")
    safe = Path(file).with_suffix(".safetensors").name if file else WEIGHTS[0]
    weights = download(name, repo, (safe,)) / safe
    if not weights.is_file():
        raise UserError(f"text encoder {name}: {repo} has no {weights.name}; convert its weights and give the file")
    return weights


def _open_clip() -> Any:
    """open_clip. Imported here: it takes many seconds."""
    from kineograph.models.torchvision_shim import ensure_torchvision_importable

    ensure_torchvision_importable()
    import open_clip

    return open_clip
