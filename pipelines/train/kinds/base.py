"""What a kind of training is. The plan, the engine, checkpoints, resuming and logging are common, and know only this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from typing_extensions import Self

from kineograph.config import digest
from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from kineograph.models.sequence import SequenceGroup
from kineograph.store.shards import ShardReader
from pipelines.train.config import TrainConfig
from pipelines.train.costs import Costs, choose_costs
from pipelines.train.dataset import Dataset, Filter, open_dataset
from pipelines.train.loading.decoding import Collate
from pipelines.train.optimizer import freeze
from pipelines.train.plan.plan import Slot, StepPlan, TrainingPlan, pack_sizes

C = TypeVar("C", bound=TrainConfig)

Sums = dict[str, tuple[Tensor, Tensor]]
"""Name of a mean to the sum of its numbers and how many they are."""


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
    means: Sums = field(default_factory=dict)
    """Further means that are logged, of some of the batch's numbers; their names are among :meth:`Kind.mean_names`."""


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

    needs_all_ranks: ClassVar[bool] = False
    """Whether all ranks must be at the same clips' bucket at the same time, since the loss is worked out together."""

    def __init__(self, config: C, data: str | Path, run: Path, on_rank: bool = False) -> None:
        """Plan over the clips of ``data``; ``on_rank`` the run is prepared. Raises UserError when there is nothing to train
        on."""
        self.config = config if on_rank else self.resolve(config)
        self.run, self.on_rank = run, on_rank
        self.reader = ShardReader(data, options=config.data.storage_options)
        self.dataset: Dataset = open_dataset(self.config, self.reader, run, self.filter())
        self.device = torch.device("cpu")

    @cached_property
    def costs(self) -> Costs:
        """What micro-batches take: what the run was started with, else what the recipe says or FLOPs let expect."""
        return choose_costs(self)

    @cached_property
    def plan(self) -> TrainingPlan:
        """Which clips are in which step."""
        config, index = self.config, self.dataset.index
        sizes = pack_sizes(index.clips, config.batch, self.costs.model)
        return TrainingPlan(index, config.seed, sizes, config.batch.packs, config.batch.mix, config.data.shuffle_groups)

    # In the driver, before the workers start.

    @classmethod
    def resolve(cls, config: C) -> C:
        """The recipe with what it leaves to other files; the ranks get it so. Raises UserError when they are not there."""
        return config

    def filter(self) -> Filter | None:
        """Which clips can be used; none: all."""
        return None

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

    def count_parameters(self) -> tuple[int, int]:
        """Of the model in all, and those of them that are trained."""
        self.identity()  # what it reads from files is read before there is no device
        with torch.device("meta"):
            model = self.build()
            plain = sum(p.numel() for p in model.parameters())
            self.adapt(model)
            freeze(model, self.config.optimizer.freeze)
        return plain, sum(p.numel() for p in model.parameters() if p.requires_grad)

    @property
    def replicas(self) -> int:
        """Groups of ranks that have clips of their own."""
        return self.config.workers.count // self.config.workers.sequence_parallel

    def adapt(self, model: nn.Module) -> None:
        """Put into a model, that of step 0 or of a checkpoint, what is trained in place of its weights, if anything."""

    def check_sharing(self) -> None:
        """Raise UserError where ranks cannot share the tokens of a clip."""
        raise UserError(f"kind {self.config.kind} does not share the tokens of a clip: set workers.sequence_parallel=1")

    def share_tokens(self, model: nn.Module, group: SequenceGroup | None) -> None:
        """Have ``model`` spread the tokens of each clip over the ranks of ``group``."""
        raise NotImplementedError

    def plain(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of an adapted model as one of :meth:`build`."""
        return state

    def place(self, device: torch.device) -> None:
        """Move what is used beside the model to ``device``."""
        self.device = device

    @property
    def reads_latents(self) -> bool:
        """Whether latents are read of clips, and not videos."""
        return False

    @abstractmethod
    def collate(self) -> Collate:
        """What makes a batch of clips."""

    @abstractmethod
    def losses(self, model: Model, batch: Any, slots: Sequence[Slot], plan: StepPlan) -> Losses:
        """Losses of ``slots``, a micro-batch of ``plan``. Randomness depends on (seed, epoch, clip) of each slot alone.

        What is trained beside the model takes its step here, over all ranks, where :attr:`needs_all_ranks`.
        """

    def calls(self, bucket: Bucket) -> int:
        """How often :meth:`losses` calls the model for a micro-batch of ``bucket``."""
        return 1

    def mean_names(self) -> list[str]:
        """Names of the means that :class:`Losses` may have."""
        return []

    def after_step(self, plan: StepPlan) -> None:
        """Learn from the losses of all micro-batches of a step; called on every rank."""

    @abstractmethod
    def example(self, bucket: Bucket, clips: int) -> Any:
        """A batch of made-up clips, on the CPU, to measure what a step of them takes."""

    def extra_state(self) -> dict[str, dict[str, Tensor]]:
        """State beside the model: name of a safetensors file in the checkpoint to its tensors; equal on every rank."""
        return {}

    def load_extra(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go on from what :meth:`extra_state` gave."""

    # On rank 0.

    @abstractmethod
    def tokens(self, bucket: Bucket) -> int:
        """Visual tokens of a clip."""

    @abstractmethod
    def flops(self, bucket: Bucket, means: Mapping[str, float] | None = None) -> float:
        """Floating-point operations of training on a clip: forward and backward, a multiply-add counting 2.

        ``means`` are of the step that the clip is in, as its losses told them; without them it is the most."""

    def kept_bytes(self, bucket: Bucket, clips: int) -> float:
        """What ``clips`` clips of ``bucket``, computed at once, keep for the backward pass, as far as that can be told
        before the first step; 0 where it cannot."""
        return 0.0

    @abstractmethod
    def looks(self, step: int) -> list[Callable[[nn.Module], Findings]]:
        """What is to be done with the averaged model after ``step`` steps: validation, samples. Usually nothing."""

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that is done every so many steps, 0 being an epoch, is done after ``step`` steps."""
        return step == self.config.steps or step % (every or max(1, round(self.plan.steps_per_epoch))) == 0

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
    return {
        "seed": config.seed,
        "validation_share": config.data.validation_share,
        "shuffle_groups": config.data.shuffle_groups,
        **config.batch.of_the_plan(),
    }
