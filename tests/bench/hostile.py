"""Ten thousand spoilt files through the guarded analysis: each must end as a result or as a reason."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from kineograph.media.faults import MediaFault
from kineograph.media.guard import GuardLimits, run_guarded
from kineograph.media.probe import MediaLimits

COUNT = 10_000
SEED = 0
GUARD = GuardLimits(memory_bytes=3 * 2**30, cpu_s=10, wall_s=30)
SLACK_S = 5.0


def measure() -> dict[str, Any]:
    mutate = _mutate()
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    longest = 0.0
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEED, SEED + COUNT):
            spoilt = mutate.mutation(seed)
            path = Path(folder) / spoilt.name
            path.write_bytes(spoilt.data)
            start = time.perf_counter()
            outcome = analyse_guarded(path, GUARD)
            took = time.perf_counter() - start
            longest = max(longest, took)
            outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith(("escaped", "crashed", "timeout", "unreadable")) or took > GUARD.wall_s + SLACK_S:
                bad.append(f"seed {seed} ({spoilt.name}, {' '.join(spoilt.done)}): {outcome}, {took:.1f} s")
                print(bad[-1], file=sys.stderr)
    total = time.perf_counter() - begun
    escaped = sum(outcomes[name] for name in ("escaped",))
    counts = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    return {
        "claim": f"of {COUNT} spoilt files each gives a result or a reason, and none passes its time limit",
        "detail": f"{counts}; longest {longest:.2f} s, all {total:.0f} s, seeds from {SEED}",
        "holds": escaped == 0 and longest <= GUARD.wall_s + SLACK_S,
        "outcomes": dict(outcomes),
        "longest_s": longest,
        "notable": bad,
    }


def analyse_guarded(path: Path, guard: GuardLimits) -> str:
    """ "result", the reason and detail of a fault, or what escaped the guard."""
    arguments = {"path": str(path), "limits": MediaLimits().model_dump(mode="json")}
    try:
        run_guarded("pipelines.data.analyse:analyse", arguments, guard)
    except MediaFault as fault:
        return str(fault)
    except BaseException as error:  # what escapes is what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"escaped: {error!r}"
    return "result"


def _mutate() -> ModuleType:
    """The tests' module of spoilt files; the folders of tests are no packages."""
    path = Path(__file__).parents[1] / "kineograph" / "media" / "mutate.py"
    spec = importlib.util.spec_from_file_location("mutate", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"the benchmark needs {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(measure())
