"""From what a recipe calls a text encoder to the encoder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kineograph.errors import UserError
from kineograph.models.text.huggingface import CLIP, T5, MiniLM
from kineograph.models.text.interface import MAX_TOKENS, Dtype, TextEncoder
from kineograph.models.text.joined import JoinedEncoder
from kineograph.models.text.labels import ClassLabels
from kineograph.models.text.openclip import OpenCLIP

FORMS = (
    "minilm, t5:NAME_OR_FOLDER, clip:NAME_OR_FOLDER, open_clip:ARCHITECTURE/TAG_OR_FILE, open_clip:hf-hub:NAME, "
    "open_clip:local-dir:FOLDER, several of them joined by +, or labels"
)
_KINDS: dict[str, Callable[[str, int, str, Dtype], TextEncoder]] = {
    T5.kind: T5,
    CLIP.kind: CLIP,
    OpenCLIP.kind: OpenCLIP,
}
# Only a + before a kind joins: a folder's name may hold one.
_JOINT = re.compile(rf"\+(?={MiniLM.name}(?:\+|$)|(?:{'|'.join(_KINDS)}):)")


class Part(NamedTuple):
    """One encoder of a spec."""

    kind: str
    where: str
    """Its name or folder; "" for MiniLM and class labels."""


def parse_spec(spec: str) -> list[Part]:
    """The encoders that ``spec`` names, in order; nothing is loaded. Raises UserError for a form that is not known."""
    if spec == ClassLabels.name:
        return [Part(spec, "")]
    parts = []
    for text in _JOINT.split(spec):
        kind, _, where = text.partition(":")
        if text != MiniLM.name and not (kind in _KINDS and where.strip()):
            raise UserError(f"no text encoder {text!r}; there is: {FORMS}")
        parts.append(Part(kind, where.strip()))
    return parts


def absolute_spec(spec: str) -> str:
    """``spec`` with the folders and files of this machine by their absolute paths, so that it names the same encoder from
    any directory. Names on the hub stay. Raises UserError for a form that is not known."""
    return "+".join(f"{kind}:{_absolute(kind, where)}" if where else kind for kind, where in parse_spec(spec))


def _absolute(kind: str, where: str) -> str:
    folder = where.removeprefix("local-dir:")
    if Path(folder).expanduser().is_dir():
        return where.removesuffix(folder) + os.path.abspath(Path(folder).expanduser())
    architecture, _, file = where.partition("/")
    if kind == OpenCLIP.kind and file.endswith(".safetensors") and Path(file).expanduser().is_file():
        return f"{architecture}/{os.path.abspath(Path(file).expanduser())}"
    return where


def load_text_encoder(
    spec: str = MiniLM.name, max_tokens: int = MAX_TOKENS, device: str = "cpu", dtype: Dtype = "float32"
) -> TextEncoder:
    """The encoder that ``spec`` names:

    - ``minilm``: comes with its pip package;
    - ``t5:NAME_OR_FOLDER``, ``clip:NAME_OR_FOLDER``: a model of transformers, by its hub name (``org/name``, or
      ``org/name/subfolder``) or in a folder;
    - ``open_clip:ARCHITECTURE/TAG_OR_FILE``, ``open_clip:hf-hub:NAME``, ``open_clip:local-dir:FOLDER``;
    - several joined by ``+``: their tokens one after another (:class:`JoinedEncoder`);
    - ``labels``, alone: captions are numbers of classes (:class:`ClassLabels`), and nothing of what follows applies.

    Each cuts a caption at ``max_tokens`` or at its own limit (77 for CLIP), whichever is less. Weights are safetensors,
    in ``dtype`` on ``device``, and are read when the first caption is encoded. Raises UserError, one line, for a spec
    that is not known, a wrong folder or a name that cannot be downloaded.
    """
    parts = parse_spec(spec)
    if spec == ClassLabels.name:
        return ClassLabels()
    if max_tokens < 2:
        raise UserError(f"max_tokens is {max_tokens}: a caption needs at least 2, its start and its end")
    encoders: list[TextEncoder] = []
    for kind, where in parts:
        if kind == MiniLM.name:
            encoders.append(MiniLM(max_tokens, device, dtype))
        else:
            encoders.append(_KINDS[kind](where, max_tokens, device, dtype))
    return encoders[0] if len(encoders) == 1 else JoinedEncoder(encoders)
