"""What rank 0 does beside training: records, saves, and looks at the averaged model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipelines.train.kinds.base import Kind, checkpoint_config
from pipelines.train.looking import Looking
from pipelines.train.observer import Observer, StepFacts
from pipelines.train.saving.saver import Saver
from pipelines.train.saving.state import TrainState
from pipelines.train.watch.stop import SaveRequest, StopRequest


class Sight:
    """The observer, the saver and the model that is looked at, from ``step`` on."""

    def __init__(self, kind: Kind[Any], step: int, world: int) -> None:
        self._kind = kind
        self._observer = Observer(kind, step, world)
        self.saver = Saver(kind.run, kind.config.checkpoint, self._observer.saved, self._observer.tracker)
        self._looking = Looking(kind)
        self._stop, self._save = StopRequest(kind.run), SaveRequest(kind.run)

    def wants_stop(self) -> bool:
        """Whether the run is asked to save and leave."""
        return self._stop.is_set()

    def wants_save(self) -> bool:
        """Whether a checkpoint is asked for, or due by the clock."""
        return self._save.is_set() or self.saver.is_due_by_time()

    def after_step(self, facts: StepFacts) -> None:
        """Record a step."""
        self._observer.after_step(facts)

    def save(self, state: TrainState) -> None:
        """Have ``state`` written; it returns at once."""
        kind = self._kind
        self._save.take_back()
        self._observer.write(step=state.step)
        self.saver.save(state, checkpoint_config(kind, self._observer.mlflow), kind.folders())

    def look(self, step: int, weights: dict[str, Tensor]) -> None:
        """Look at the averaged model in all ways that are due."""
        for found in self._looking(step, weights):
            self._observer.looked(found, step)
            if found.metrics:
                self.saver.record(step, found.metrics)

    def close(self, status: str, step: int) -> None:
        """Finish what was begun. Raises what went wrong in saving, where the run itself went well."""
        try:
            self.saver.close()
            if status == "KILLED":
                self._stop.obeyed(step)
        except BaseException:
            status = "FAILED"
            raise
        finally:
            self._observer.close(status, step)
