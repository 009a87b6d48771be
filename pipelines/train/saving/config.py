"""What a recipe says of checkpoints."""

from __future__ import annotations

from pydantic import Field

from kineograph.config import Config


class CheckpointConfig(Config):
    """When the state is saved and how much of it is kept."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    minutes: float | None = Field(None, gt=0)
    """Save also where so much time has passed since the last checkpoint; none: by steps alone."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints of multiples of so many steps are kept for ever; 0: none is."""
    keep_best: int = Field(0, ge=0)
    """Best checkpoints kept, by ``best``."""
    best: str = "validation_loss"
    """Metric of validation by which checkpoints are better, the lower the better; with a minus sign before it, such as
    -validation_accuracy, the higher."""

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the state after ``step`` of ``steps`` steps is saved."""
        return step % self.every == 0 or step == steps
