"""`kineo --help` answers at once: beside what importing torch alone takes."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any


def measure() -> dict[str, Any]:
    help_s = min(_seconds("from kineograph.cli.main import main; main(['--help'])") for _ in range(5))
    torch_s = min(_seconds("import torch") for _ in range(3))
    return {
        "claim": "kineo --help takes under 0.5 s and under a third of importing torch",
        "detail": f"{help_s:.2f} s, importing torch {torch_s:.2f} s",
        "holds": help_s < 0.5 and help_s < torch_s / 3,
        "help_s": help_s,
        "torch_s": torch_s,
    }


def _seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
