"""Run every benchmark: ``python -m tests.bench [NAME…] [--json]``. Exits with 1 when a claim does not hold."""

from __future__ import annotations

import importlib
import json
import sys

NAMES = ("startup", "analysis", "training", "hostile")


def main(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    names = [a for a in arguments if not a.startswith("-")] or list(NAMES)
    results = []
    for name in names:
        if name not in NAMES:
            print(f"no benchmark {name!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
            return 2
        results.append({"name": name, **importlib.import_module(f"tests.bench.{name}").measure()})
        if not as_json:
            result = results[-1]
            print(
                f"{name}: {result['claim']}\n    {result['detail']}: {'holds' if result['holds'] else 'DOES NOT HOLD'}"
            )
    if as_json:
        print(json.dumps(results))
    return 0 if all(r["holds"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
