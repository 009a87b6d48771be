"""Kind classifier: a ViT or a ViViT learns to tell the labels of clips apart."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kineograph.diffusion.random import uniform
from kineograph.errors import UserError
from kineograph.models.classifier import Classifier, ClassifierConfig, prepare
from kineograph.models.vit import ViT, ViTConfig, read_transformers_vit
from kineograph.models.vivit import ViViT, ViViTConfig
from kineograph.store.labels import COLUMNS, labels_of
from kineograph.store.loader import ClipLoader
from kineograph.store.shards import ClipEntry
from pipelines.train.kinds.base import Findings, Kind, Losses, Model
from pipelines.train.kinds.classifier.augment import augment
from pipelines.train.kinds.classifier.config import ClassifierRecipe
from pipelines.train.kinds.classifier.confusion import confusion_matrix, draw_confusion
from pipelines.train.plan import Slot, StepPlan


@dataclass(frozen=True)
class Examples:
    """Inputs with their classes."""

    inputs: Tensor
    """(B 3 H W) or (B 3 T H W) in [-1, 1]."""
    classes: Tensor
    """(B)."""

    def to(self, device: torch.device) -> Examples:
        return Examples(self.inputs.to(device, non_blocking=True), self.classes.to(device, non_blocking=True))


class ClassifierKind(Kind[ClassifierRecipe]):
    """Trains the clips' labels. Clips without one are left out, and counted in the plan."""

    recipe = ClassifierRecipe
    headline = ("loss", "accuracy", "validation_accuracy")

    def choose(self, clips: list[ClipEntry]) -> list[ClipEntry]:
        """Clips of the media that the recipe names which have a label; finds the classes."""
        wanted = "videos" if isinstance(self.config.model, ViViTConfig) else self.config.media
        clips = [c for c in clips if wanted == "all" or (wanted == "images") == c.bucket.endswith("x1")]
        labels = labels_of(self.reader.read([c.address for c in clips], COLUMNS), self.config.label)
        self.names, self.unlabelled = labels.names, labels.unlabelled
        self.class_of = {c.clip_id: i for c, i in zip(clips, labels.ids, strict=True) if i is not None}
        return [c for c in clips if c.clip_id in self.class_of]

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
        counts = Counter(self.names[self.class_of[c.clip_id]] for c in self.dataset.training)
        return {name: counts[name] for name in self.names}

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

    def load(self, slots: Sequence[Slot]) -> Examples:
        clips = self.loader.load([slot.clip for slot in slots])
        inputs = [self.example(clip.picture.numpy(), slot) for clip, slot in zip(clips, slots, strict=True)]
        return Examples(torch.cat(inputs), torch.tensor([self.class_of[slot.clip.clip_id] for slot in slots]))

    def example(self, video: np.ndarray, slot: Slot) -> Tensor:
        """What the model sees of video uint8 (T H W 3) in this epoch: one input, with its axis B."""
        key = (self.config.seed, slot.epoch, slot.clip.clip_id)
        if isinstance(self.config.model, ViTConfig):
            frame = int(uniform(*key, "frame") * len(video))
            video = video[frame : frame + 1]
        return prepare(augment(video, self.config.augment, *key), self.config.model)

    def losses(self, model: Model, batch: Examples, slots: Sequence[Slot], plan: StepPlan) -> Losses:
        logits = model(batch.inputs).float()
        total = F.cross_entropy(logits, batch.classes, label_smoothing=self.config.label_smoothing, reduction="none")
        return Losses(total, {"accuracy": logits.detach().argmax(1).eq(batch.classes).float()})

    # On rank 0.

    def tokens(self, plan: StepPlan) -> int:
        return len(plan.slots) * math.prod(self.config.model.grid)

    def looks(self, step: int) -> list[Callable[[nn.Module], Findings]]:
        return [self.validate] if self.dataset.validation and self.is_due(self.config.validation.every, step) else []

    def validate(self, model: nn.Module) -> Findings:
        """Accuracy and loss on held-out clips, of a video the mean over its frames, and the confusion matrix."""
        assert isinstance(model, ViT | ViViT)
        loader = ClipLoader(self.dataset.reader, cache_bytes=0)
        classifier = Classifier(self.description(), model, str(self.device))
        chances, truth = [], []
        for entries in self.dataset.held_out(self.config.validation.clips):
            chances.append(classifier.probabilities([clip.picture.numpy() for clip in loader.load(entries)]))
            truth += [self.class_of[entry.clip_id] for entry in entries]
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
