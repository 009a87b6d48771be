"""Run benchmarks: ``python -m tests.bench [NAME…] [--json]``. Exits with 1 when a claim does not hold.

``python -m tests.bench curation --only analysis`` measures one claim of several; see tests/bench/curation.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

from tests.bench import curation

NAMES = (
    "startup",
    "curation",
    "redecide",
    "kills",
    "plan",
    "training",
    "train_kills",
    "sequence",
    "gpu",
    "classifiers",
    "autoencoder",
    "hostile",
    "long_video",
    "conditioning",
    "seams",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure the claims of docs/benchmarks.md."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"One of {', '.join(NAMES)}; all by default.")
    parser.add_argument("--json", action="store_true", help="One JSON list on stdout.")
    parser.add_argument(
        "--checkpoint",
        help="What long_video (else with random weights) and conditioning generate with; for seams an autoencoder, or "
        "the run that trained it.",
    )
    curation.add_options(parser)
    given = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    for name in given.names or NAMES:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are: {', '.join(NAMES)}")
        if name == "curation":
            found = curation.measure(given.only, given.files, given.data_juicer)
        elif name in ("long_video", "conditioning", "seams"):
            found = [{"name": name, **importlib.import_module(f"tests.bench.{name}").measure(given.checkpoint)}]
        else:
            made = importlib.import_module(f"tests.bench.{name}").measure()
            found = made if isinstance(made, list) else [{"name": name, **made}]
        results.extend(found)
        for result in () if given.json else found:
            verdict = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[result["holds"]]
            print(f"{result['name']}: {result['claim']}\n    {result['detail']}: {verdict}")
    if given.json:
        print(json.dumps(results))
    return 1 if any(result["holds"] is False for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
