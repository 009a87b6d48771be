"""What a kind of training is. The plan, the engine, checkpoints, resuming and logging are common, and know only this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from typing_extensions import Self

from kineograph.config import digest
from kineograph.store.loader import ClipLoader
from kineograph.store.shards import ClipEntry, ShardReader
from pipelines.train.config import TrainConfig
from pipelines.train.dataset import open_dataset
from pipelines.train.plan import Slot, StepPlan

C = TypeVar("C", bound=TrainConfig)


class Model(Protocol):
    """The module of :meth:`Kind.build`, bare or under the engine: called, it gives what the module's ``forward`` gives."""

    def __call__(self, *inputs: Any) -> Any: ...


class OnDevice(Protocol):
    """Tensors that move together; a Tensor is one."""

    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True)
class Losses:
    """Losses of the clips of a batch."""

    total: Tensor
    """(B): what is minimised is its mean over the global batch."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Name to (B), without gradient: means that are logged. Every rank has the same names at the same step."""


@dataclass(frozen=True)
class Findings:
    """What looking at the averaged model gave, for metrics and for people."""

    metrics: dict[str, float] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    """Under the run directory; MLflow gets them in the same folders."""


class Kind(ABC, Generic[C]):
    """A kind of training on a dataset, in the run directory ``run``. It is made in the driver, which checks and prepares,
    and on every rank, which train."""

    recipe: ClassVar[type[TrainConfig]]
    """Of its recipes."""
    headline: ClassVar[tuple[str, ...]] = ("loss",)
    """Metrics that the progress line shows."""

    def __init__(self, config: C, data: Path, run: Path, on_rank: bool = False) -> None:
        """Plan over the clips of ``data``; ``on_rank`` the run is prepared. Raises UserError when there is nothing to train
        on."""
        self.config = config if on_rank else self.resolve(config)
        self.run, self.on_rank = run, on_rank
        self.reader = ShardReader(data)
        self.dataset = open_dataset(config, self.reader, self.choose)
        self.device = torch.device("cpu")

    # In the driver, before the workers start.

    @classmethod
    def resolve(cls, config: C) -> C:
        """The recipe with what it leaves to other files; the ranks get it so. Raises UserError when they are not there."""
        return config

    def choose(self, clips: list[ClipEntry]) -> list[ClipEntry]:
        """The clips that can be used. By default all."""
        return clips

    @abstractmethod
    def check(self) -> None:
        """Raise UserError when recipe and dataset do not go together."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the plan says of this kind: at least ``reads``, a few words on what is read of the clips, and perhaps
        ``notes``, lines that a person must see."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Parts of a checkpoint's config.json, or what of them, that a run must keep to go on from it."""

    def prepare(self) -> None:
        """Write into the run directory what all ranks need. Called once, on a start from nothing."""

    # On every rank.

    @abstractmethod
    def build(self) -> nn.Module:
        """The model, with weights that depend on torch's seed alone."""

    def start(self, model: nn.Module) -> None:
        """Make of a built model that of step 0, where its weights come from more than the seed."""

    def place(self, device: torch.device) -> None:
        """Move what is used beside the model to ``device``."""
        self.device = device

    @cached_property
    def loader(self) -> ClipLoader:
        """Of training clips."""
        return ClipLoader(self.dataset.reader, self.config.data.cache_mib * 2**20)

    def load(self, slots: Sequence[Slot]) -> OnDevice:
        """The batch of ``slots``; called in a thread, ahead of its step."""
        return self.loader.batch([slot.clip for slot in slots])

    @abstractmethod
    def losses(self, model: Model, batch: Any, slots: Sequence[Slot], plan: StepPlan) -> Losses:
        """Losses of this rank's ``slots`` of ``plan``. Randomness depends on (seed, epoch, clip) of each slot alone.

        What is trained beside the model takes its step here, over all ranks.
        """

    def extra_state(self) -> dict[str, dict[str, Tensor]]:
        """State beside the model: name of a safetensors file in the checkpoint to its tensors; equal on every rank."""
        return {}

    def load_extra(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go on from what :meth:`extra_state` gave."""

    # On rank 0.

    @abstractmethod
    def tokens(self, plan: StepPlan) -> int:
        """Visual tokens of a step, over all ranks."""

    @abstractmethod
    def looks(self, step: int) -> list[Callable[[nn.Module], Findings]]:
        """What is to be done with the averaged model after ``step`` steps: validation, samples. Usually nothing."""

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that is done every so many steps, 0 being an epoch, is done after ``step`` steps."""
        return step == self.config.steps or step % (every or self.dataset.plan.cycle) == 0

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """config.json of checkpoints: what is needed to build and use the model again."""

    def folders(self) -> dict[str, Path]:
        """Folders of the run that belong to every checkpoint: name there to where it is."""
        return {}

    # In the driver, after the last step.

    def finish(self) -> dict[str, Any]:
        """Make of the last checkpoint what the run is for, once, and return facts of it."""
        return {}

    def advice(self) -> list[str]:
        """Lines for a person: what the result is good for."""
        return []


def checkpoint_config(kind: Kind[Any], mlflow: dict[str, Any]) -> dict[str, Any]:
    """config.json of a checkpoint: the kind's own part, and what every run must keep or tell."""
    config = kind.config
    return {
        "kind": config.kind,
        **kind.describe(),
        "validation_share": config.data.validation_share,
        "plan": plan_keys(config),
        "manifest_digest": kind.dataset.manifest.digest,
        "recipe_digest": digest(config),
        "mlflow": mlflow,
    }


def changed_since(saved: dict[str, Any], kind: Kind[Any]) -> str:
    """What makes a checkpoint with the config.json ``saved`` unfit to go on from, "" when nothing does."""
    if saved.get("kind") != kind.config.kind:
        return f"it is of kind {saved.get('kind')}, the recipe of kind {kind.config.kind}"
    digest_now = kind.dataset.manifest.digest
    if saved["manifest_digest"] != digest_now:
        return f"the dataset is {digest_now[:12]}, it was {saved['manifest_digest'][:12]}"
    before = _leaves(saved)
    for name, value in _leaves({**kind.identity(), "plan": plan_keys(kind.config)}).items():
        if before.get(name) != value:
            return f"{name} is {value}, it was {before.get(name)}"
    return ""


def _leaves(parts: dict[str, Any]) -> dict[str, Any]:
    """{part: {key: value}} as {"part.key": value}; what is no mapping as it is."""
    leaves: dict[str, Any] = {}
    for part, value in parts.items():
        leaves |= {f"{part}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {part: value}
    return leaves


def plan_keys(config: TrainConfig) -> dict[str, Any]:
    """What the order of clips depends on, besides the manifest."""
    return {"seed": config.seed, "validation_share": config.data.validation_share, **config.batch.model_dump()}
