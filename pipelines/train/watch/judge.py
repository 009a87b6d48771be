"""Whether training hangs, and on whom the others wait. Pure: from what each rank last said of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kineograph.progress import duration


@dataclass(frozen=True)
class Sign:
    """A rank's last sign of life."""

    step: int
    phase: str
    still_s: float
    """Since it came to where it is, up to now."""
    allowed_s: float
    """How long it may stay there."""
    waits: bool = False
    """It is inside a call that waits for other ranks."""
    silent_s: float = 0.0
    """Since it was last heard."""
    passed: int = 0
    """Steps that others have made since it fell silent."""

    @property
    def where(self) -> str:
        """Step and phase."""
        return f"step {self.step}, {self.phase}" if self.step >= 0 else self.phase


@dataclass(frozen=True)
class Verdict:
    """Training hangs."""

    culprits: tuple[int, ...]
    """Ranks on which the others wait; none where all wait at one place."""
    text: str
    """One line."""


def judge(signs: Mapping[int, Sign], names: Sequence[str], silence_s: float) -> Verdict | None:
    """The verdict where no rank moves any more, else None. ``names``: what to call each rank, its machine and process.

    Ranks go through a step together, so as long as one of them moves, none hangs: a rank that hangs stops all others
    within a step. Who hangs is then who has not been heard for ``silence_s`` (its process is stopped, or its machine is
    gone), else who stopped first and does not wait for others. A rank whose signs are lost on the way, while others
    make steps, says nothing about itself.
    """
    known = {r: s for r, s in signs.items() if s.passed < 2}
    silent = tuple(r for r, s in known.items() if s.silent_s > silence_s)
    if not known or not all(r in silent or s.still_s > s.allowed_s for r, s in known.items()):
        return None
    if silent:
        parts = [
            f"{names[r]} has not been heard for {duration(known[r].silent_s)}, last in {known[r].where}" for r in silent
        ]
        return Verdict(silent, f"{'; '.join(parts)}: stopped or blocked, or its machine is gone")
    busy = {r: s for r, s in known.items() if not s.waits} or known
    rank, sign = max(busy.items(), key=lambda item: item[1].still_s)
    if len(known) > 1 and len(busy) == len(known) and len({s.where for s in known.values()}) == 1:
        text = f"all {len(known)} ranks hang: {duration(sign.still_s)} in {sign.where}, nobody is behind"
        return Verdict((), text)
    return Verdict((rank,), f"{names[rank]} hangs: {duration(sign.still_s)} in {sign.where}")


def table(signs: Mapping[int, Sign], names: Sequence[str]) -> str:
    """A line per rank: where it is, for how long, whether it waits or is silent."""
    lines = []
    for rank, sign in sorted(signs.items()):
        line = f"{names[rank]}: {sign.where} for {sign.still_s:.1f}s of {sign.allowed_s:g}s"
        if sign.waits:
            line += ", waits for others"
        if sign.silent_s > 1:
            line += f", not heard for {sign.silent_s:.1f}s"
        lines.append(line)
    return "\n".join(lines)
