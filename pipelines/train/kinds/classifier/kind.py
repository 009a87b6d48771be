"""Kind classifier: a ViT or a ViViT learns to tell the labels of clips apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.classifier import Classifier, ClassifierConfig
from kineograph.models.flops import count_flops
from kineograph.models.vit import ViT, ViTConfig, read_transformers_vit
from kineograph.models.vivit import ViViT, ViViTConfig
from kineograph.store.labels import COLUMNS, labels_of
from kineograph.store.loader import ClipLoader
from kineograph.store.shards import RowAddress
from pipelines.train.dataset import Filter
from pipelines.train.kinds.base import Findings, Kind, Losses, Model
from pipelines.train.kinds.classifier.augment import Inputs
from pipelines.train.kinds.classifier.config import ClassifierRecipe
from pipelines.train.kinds.classifier.confusion import confusion_matrix, draw_confusion
from pipelines.train.plan.plan import Slot, StepPlan


class ClassifierKind(Kind[ClassifierRecipe]):
    """Trains the clips' labels. Clips without one are left out, and counted in the plan."""

    recipe = ClassifierRecipe
    headline = ("loss", "accuracy", "validation_accuracy")

    def filter(self) -> Filter:
        """Clips of the media that the recipe names which have a label; finds the classes."""
        wanted = "videos" if isinstance(self.config.model, ViViTConfig) else self.config.media
        shards = self.reader.manifest.shards
        found: dict[int, list[dict[str, Any]]] = {}
        for number, shard in enumerate(shards):
            if wanted == "all" or (wanted == "images") == Bucket.parse(shard.bucket).is_image:
                found[number] = self.reader.columns(number, COLUMNS).to_pylist()
        labels = labels_of([row for rows in found.values() for row in rows], self.config.label)
        ids = np.array([-1 if i is None else i for i in labels.ids], np.int16)
        ends = np.cumsum([len(rows) for rows in found.values()])
        self.names, self.unlabelled = labels.names, labels.unlabelled
        self.classes = dict(zip(found, np.split(ids, ends[:-1]), strict=True))
        """Of every row of a shard its class, -1 where it has none."""
        nothing = {number: np.zeros(shard.rows, bool) for number, shard in enumerate(shards)}
        return {**nothing, **{number: classes >= 0 for number, classes in self.classes.items()}}

    def class_of(self, address: RowAddress) -> int:
        """The class of the clip at ``address``."""
        return int(self.classes[address.shard][self.reader.row_number(address)])

    # In the driver.

    def check(self) -> None:
        if len(known := [name for name, count in self.class_counts().items() if count]) < 2:
            raise UserError(
                f"all clips to train on are labelled {known[0]!r}: lower data.validation_share, or curate more data"
            )
        if self.config.start is not None:
            self.start(self.build())

    def facts(self) -> dict[str, Any]:
        counts, what = self.class_counts(), self.config.label.name
        media = "images and frames" if isinstance(self.config.model, ViTConfig) else "videos"
        notes = [f"no clip to train on has the {what} {name!r}" for name, count in counts.items() if not count]
        if self.unlabelled:
            notes.append(f"{self.unlabelled} clips have no {what} and are left out")
        reads = f"{media} of {len(self.names)} classes of {what}"
        return {"reads": reads, "classes": counts, "unlabelled": self.unlabelled, "notes": notes}

    def class_counts(self) -> dict[str, int]:
        """Clips to train on of every class."""
        counts = np.zeros(len(self.names), int)
        for rows in self.plan.index.rows:
            counts += np.bincount(self.classes[rows.shard][rows.mask()], minlength=len(counts))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def identity(self) -> dict[str, Any]:
        description = self.describe()
        return {part: description[part] for part in ("model", "label", "labels")}

    # On every rank.

    def description(self) -> ClassifierConfig:
        """The classifier that is trained."""
        return ClassifierConfig(label=self.config.label.name, labels=self.names, model=self.config.model)

    def build(self) -> nn.Module:
        return self.description().build()

    def start(self, model: nn.Module) -> None:
        """Take the weights that the recipe starts from."""
        if self.config.start is None:
            return
        source = read_start(self.config.start)
        if isinstance(model, ViViT) and isinstance(source, ViViT):
            raise UserError(f"start {self.config.start} is a ViViT; a ViViT starts from a ViT")
        if not isinstance(source, ViT):
            raise UserError(f"start {self.config.start} classifies videos and the model to train images: give a ViT")
        assert isinstance(model, ViT | ViViT)
        model.start_from(source)

    def collate(self) -> Inputs:
        return Inputs(self.config.model, self.config.augment, self.config.seed)

    def losses(self, model: Model, batch: Tensor, slots: Sequence[Slot], plan: StepPlan) -> Losses:
        classes = torch.tensor([self.class_of(slot.address) for slot in slots], device=batch.device)
        logits = model(batch).float()
        total = F.cross_entropy(logits, classes, label_smoothing=self.config.label_smoothing, reduction="none")
        return Losses(total, {"accuracy": logits.detach().argmax(1).eq(classes).float()})

    def example(self, bucket: Bucket, clips: int) -> Tensor:
        return torch.rand(clips, *self.input_shape) * 2 - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What the model sees of a clip: (3 H W), or (3 T H W)."""
        model = self.config.model
        return (3, model.frames, *model.size) if isinstance(model, ViViTConfig) else (3, *model.size)

    # On rank 0.

    def tokens(self, bucket: Bucket) -> int:
        return math.prod(self.config.model.grid)

    def flops(self, bucket: Bucket, means: Mapping[str, float] | None = None) -> float:
        return count_flops(self.config.model, self.input_shape[1:], classes=len(self.names)).training

    def looks(self, step: int) -> list[Callable[[nn.Module], Findings]]:
        return [self.validate] if self.dataset.held_out and self.is_due(self.config.validation.every, step) else []

    def validate(self, model: nn.Module) -> Findings:
        """Accuracy and loss on held-out clips, of a video the mean over its frames, and the confusion matrix."""
        assert isinstance(model, ViT | ViViT)
        loader = ClipLoader(self.dataset.reader, cache_bytes=0)
        classifier = Classifier(self.description(), model, str(self.device))
        chances, truth = [], []
        for entries in self.dataset.held_out.values():
            chances.append(classifier.probabilities([clip.picture.numpy() for clip in loader.load(entries)]))
            truth += [self.class_of(entry.address) for entry in entries]
        probabilities, classes = np.concatenate(chances), np.array(truth)
        counts = confusion_matrix(classes, probabilities.argmax(1), len(self.names))
        likelihood = probabilities[np.arange(len(classes)), classes]
        metrics = {
            "validation_accuracy": float(np.trace(counts) / counts.sum()),
            "validation_loss": float(-np.log(likelihood.clip(1e-12)).mean()),
        }
        return Findings(metrics, {"confusion": draw_confusion(counts, self.names)})

    def describe(self) -> dict[str, Any]:
        return self.description().model_dump(mode="json", exclude={"kind"})

    def advice(self) -> list[str]:
        example = f"scores.learned={{model: {self.run}, label: {self.names[0]}}}"
        return [f"filter     kineo data run RECIPE --set '{example}' --set filters.learned.min=0.5"]


def read_start(start: str) -> nn.Module:
    """The model of a classifier's training run or checkpoint, or of a folder with a ViT of transformers. Raises UserError,
    one line, when there is none."""
    config = Path(start) / "config.json"
    try:
        is_transformers = "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        is_transformers = False
    return read_transformers_vit(start) if is_transformers else Classifier.load(start).model
