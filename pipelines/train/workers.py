"""The workers of a training run: how many, on what, and what happens when one of them dies or hangs."""

from __future__ import annotations

from pydantic import Field, model_validator

from kineograph.config import Config


class WorkersConfig(Config):
    """What Ray Train starts, watches and starts again."""

    count: int = Field(1, ge=1)
    """Training workers (ranks)."""
    least: int | None = Field(None, ge=1)
    """With how many workers training starts, or goes on after a machine is lost, where there is no room for count; none:
    it waits for count. It grows back to count when there is room again."""
    cpus: float = Field(1, gt=0)
    """CPUs reserved for each; also its number of torch threads."""
    gpu: bool = False
    """One GPU for each."""
    sequence_parallel: int = Field(1, ge=1)
    """Workers that share the tokens of each clip, for videos too long for one of them. count and least are multiples."""
    max_failures: int = Field(2, ge=-1)
    """Failures in a row, without a new checkpoint between them, after which all start again from the last checkpoint; one
    more ends the run. -1: any number. A machine that is taken away with notice does not count."""
    hang_timeout_s: float = Field(600, gt=0)
    """A rank that makes no progress for so long is named and ended as if it had died."""
    slow_timeout_s: float = Field(3600, gt=0)
    """The same while a rank starts, gathers, saves or looks, and in its first step, which may compile."""
    collective_timeout_s: float = Field(7200, gt=0)
    """A message between ranks that takes longer is an error: the last resort, for when nobody is left to see a hang."""
    room_every_s: float = Field(60, gt=0)
    """How often a group of fewer than count workers looks for room for more; it grows after its next checkpoint."""
    price_per_hour: float | None = Field(None, ge=0)
    """What one worker costs in an hour, in your currency, for the estimate of --dry-run."""

    @model_validator(mode="after")
    def _check(self) -> WorkersConfig:
        for name, number in (("count", self.count), ("least", self.fewest)):
            if number % self.sequence_parallel:
                raise ValueError(f"{name} {number} is no multiple of sequence_parallel {self.sequence_parallel}")
        if self.fewest > self.count:
            raise ValueError(f"least {self.least} is more than count {self.count}")
        if not self.hang_timeout_s <= self.slow_timeout_s < self.collective_timeout_s:
            raise ValueError(
                f"hang_timeout_s {self.hang_timeout_s:g}, slow_timeout_s {self.slow_timeout_s:g} and "
                f"collective_timeout_s {self.collective_timeout_s:g} must grow in this order"
            )
        return self

    @property
    def fewest(self) -> int:
        """Workers without which there is no training."""
        return self.count if self.least is None else self.least
