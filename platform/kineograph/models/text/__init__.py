"""Text encoders behind one interface: captions in, token states out.

The default is MiniLM (384-d), whose weights come in a pip package, so that nothing has to be downloaded. T5, CLIP and
open_clip's models load from a folder or by their hub name, and several may be joined; class labels stand in for captions
where a model knows classes and no words (:func:`load_text_encoder`).
Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from kineograph.models.text.huggingface import CLIP, T5, MiniLM, minilm_folder
from kineograph.models.text.interface import BATCH, MAX_TOKENS, Dtype, TextEncoder, empty_embedding, encode_captions
from kineograph.models.text.joined import JoinedEncoder
from kineograph.models.text.labels import ClassLabels
from kineograph.models.text.load import absolute_spec, load_text_encoder, parse_spec
from kineograph.models.text.openclip import OpenCLIP

__all__ = [
    "BATCH",
    "CLIP",
    "MAX_TOKENS",
    "T5",
    "ClassLabels",
    "Dtype",
    "JoinedEncoder",
    "MiniLM",
    "OpenCLIP",
    "TextEncoder",
    "absolute_spec",
    "empty_embedding",
    "encode_captions",
    "load_text_encoder",
    "minilm_folder",
    "parse_spec",
]
