"""Where an encoder's files are: a folder, or a name on the Hugging Face hub that becomes one.

Only configs, tokenizers and safetensors are downloaded and opened; nothing is unpickled and no code of a model's author
runs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kineograph.errors import KineographError, UserError
from kineograph.store.commit import sha256_file

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
SENTENCEPIECE = ("spiece.model", "sentencepiece.model", "tokenizer.model")
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE)
TOKENIZER = (*VOCABULARY, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_HUB_NAME = re.compile(r"^([\w.-]+(?:/[\w.-]+)?)((?:/[\w.-]+)*)$")


class Folders(NamedTuple):
    """Of a model of transformers."""

    model: Path
    tokenizer: Path

    def listed(self) -> list[tuple[str, Path]]:
        """Every file that the encoder depends on, by a name that does not change with the folders' place."""
        model = [(f"model/{p.name}", p) for p in matching(self.model, ("config.json", *WEIGHTS))]
        return model + [(f"tokenizer/{p.name}", p) for p in matching(self.tokenizer, TOKENIZER)]


def locate(kind: str, where: str) -> Folders:
    """The folders of ``where``: a folder, or a hub name (downloaded unless it was before).

    A folder text_encoder… of a diffusers pipeline has its tokenizer in the folder tokenizer… beside it; such a folder on
    the hub is org/name/text_encoder…. Raises UserError when there is no such folder, it holds no model in safetensors
    form, or the hub cannot be reached.
    """
    name = f"{kind}:{where}"
    folder = local_folder(where)
    if folder is None:
        match = _HUB_NAME.match(where)
        if match is None:
            raise UserError(f"text encoder {name}: there is no such folder")
        folder = download(name, match[1], ("config.json", *WEIGHTS, *TOKENIZER), match[2].strip("/"))
    check_model(name, folder)
    return Folders(folder, tokenizer_folder(name, folder))


def local_folder(where: str) -> Path | None:
    """``where`` as a folder; None when there is none and it may be a name on the hub."""
    folder = Path(where).expanduser()
    return folder if folder.is_dir() else None


def check_model(name: str, folder: Path) -> None:
    """Raise UserError when ``folder`` has no config.json or no safetensors weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"text encoder {name}: no config.json in {folder}: give a folder that save_pretrained wrote")
    if not matching(folder, WEIGHTS):
        raise UserError(
            f"text encoder {name}: no model.safetensors in {folder}: other formats may hold code and are not opened; "
            "convert the weights once with save_pretrained"
        )


def tokenizer_folder(name: str, model: Path) -> Path:
    """``model`` or the folder beside it that holds its tokenizer. Raises UserError when there is none that can be read."""
    for folder in (model, model.parent / _tokenizer_name(model.name)):
        if matching(folder, ("tokenizer.json",)):
            return folder
        if matching(folder, SENTENCEPIECE) and importlib.util.find_spec("sentencepiece") is None:
            raise UserError(f"text encoder {name}: its tokenizer is in SentencePiece's form: pip install sentencepiece")
        if matching(folder, VOCABULARY):
            return folder
    # transformers would go on with a vocabulary of a few special tokens.
    raise UserError(f"text encoder {name}: no tokenizer in {model}: save the model's tokenizer there")


def download(name: str, repo: str, patterns: Sequence[str], inside: str = "") -> Path:
    """The local copy of the files of a hub repository that match ``patterns``: of its top folder, or of the folder
    ``inside`` and the tokenizer's folder beside that.

    What was downloaded before is used without a network. Raises UserError when it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download

    folders = {f"{inside}/", f"{_tokenizer_name(inside)}/"} if inside else {""}
    try:
        copy = snapshot_download(
            repo,
            allow_patterns=[folder + pattern for folder in sorted(folders) for pattern in patterns],
            ignore_patterns=[f"{folder}*/*" for folder in sorted(folders)],  # a pattern's * matches slashes too
        )
        return Path(copy) / inside
    except Exception as error:
        reason = str(error).split("\n", maxsplit=1)[0].strip() or type(error).__name__
        raise UserError(
            f"text encoder {name} is not on this machine, and {repo} cannot be had from {constants.ENDPOINT} ({reason}): "
            "check the name, run `hf auth login` if it is gated, or download it elsewhere and give the folder"
        ) from error


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn whatever a library raises about an encoder's files into one UserError."""
    try:
        yield
    except KineographError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"text encoder {name} cannot be loaded: {reason}: download or save it again") from error


def digests(files: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """SHA-256 (hex) of each of ``files`` (name, path). Large files that the hub's cache names by it are not read."""
    return {name: _named_by_digest(path) or sha256_file(path) for name, path in files}


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files directly in ``folder`` whose names match one of ``patterns``, sorted."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _named_by_digest(path: Path) -> str:
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.match(blob.name) else ""


def _tokenizer_name(model: str) -> str:
    """text_encoder_2 -> tokenizer_2, as diffusers names them."""
    return model.replace("text_encoder", "tokenizer")
