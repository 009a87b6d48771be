"""The job of datajuicer.yaml on the same real files: Data-Juicer's wall time and ours, start-up included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from tests.bench.real_clips import files_of, real_clips, rewrite, seconds

HERE = Path(__file__).parent
MOST_SHARE = 1 / 8
# Of video: what the first figure was measured on. What the files lack is made up by copies with other bytes.
SECONDS = 388
ROUNDS = 2
TIMEOUT_S = 1800


def measure(data_juicer: Path | None, files: Path | None) -> dict[str, Any]:
    """Least wall time of either side in some rounds in turns; skipped where Data-Juicer or ffmpeg is not there."""
    claim = f"Data-Juicer's job takes at most 1/{1 / MOST_SHARE:.0f} of Data-Juicer's wall time, clips written"
    missing = _missing(data_juicer)
    if missing:
        return {"claim": claim, "detail": f"skipped: {missing}", "holds": None}
    assert data_juicer is not None
    theirs, ours = [], []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        what = _gather(folder / "raw", files)
        for turn in range(ROUNDS):
            theirs.append(_timed(folder / f"theirs{turn}", lambda out: _theirs(data_juicer, folder / "raw", out)))
            ours.append(_timed(folder / f"ours{turn}", lambda out: _ours(folder / "raw", out)))
        counts = f"{_kept(folder / 'theirs0')} sources kept there, {_clips(folder / 'ours0')} clips written here"
    share = min(ours) / min(theirs)
    walls = f"{_shown(ours)} s here, {_shown(theirs)} s there"
    return {
        "claim": claim,
        "detail": f"1/{1 / share:.1f}: {walls}, least of each compared; {what}; {counts}",
        "holds": share <= MOST_SHARE,
        "share": share,
        "ours_s": ours,
        "theirs_s": theirs,
    }


def _missing(data_juicer: Path | None) -> str:
    if data_juicer is None:
        return "--data-juicer is not given, the dj-process command of an environment with Data-Juicer"
    if not os.access(data_juicer, os.X_OK):
        return f"{data_juicer} is no command"
    return "" if shutil.which("ffmpeg") else "Data-Juicer needs the ffmpeg command"


def _gather(raw: Path, files: Path | None) -> str:
    """Fill ``raw`` with the real files, and with copies of the wheel's clips until there is enough; says what."""
    found = files_of(files)
    for path in found:
        shutil.copy(path, raw / path.name)
    enough = sum(seconds(path) for path in found)
    copies = 0
    while enough < SECONDS:
        for path in real_clips():
            target = raw / f"{path.stem}_{copies}.mp4"
            rewrite([path], target, skip=1 + copies)
            enough += seconds(target)
        copies += 1
    return f"{len(found)} real files and {copies * len(real_clips())} copies encoded again, {enough:.0f} s of video"


def _timed(out: Path, work: Callable[[Path], None]) -> float:
    out.mkdir()
    start = time.monotonic()
    work(out)
    return time.monotonic() - start


def _theirs(data_juicer: Path, raw: Path, out: Path) -> None:
    lines = [json.dumps({"id": str(i), "text": "", "videos": [str(p)]}) for i, p in enumerate(sorted(raw.iterdir()))]
    (out / "videos.jsonl").write_text("\n".join(lines) + "\n")
    (out / "recipe.yaml").write_text((HERE / "datajuicer.yaml").read_text().replace("OUT", str(out)))
    _run([str(data_juicer), "--config", str(out / "recipe.yaml")], out)


def _ours(raw: Path, out: Path) -> None:
    kineo = Path(sys.executable).with_name("kineo")
    recipe = HERE / "datajuicer_same.yaml"
    _run([str(kineo), "data", "run", str(recipe), "--input", str(raw), "--out", str(out / "run")], out)


def _run(command: list[str], out: Path) -> None:
    with open(out / "log.txt", "w") as log:
        ended = subprocess.run(command, cwd=out, stdout=log, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False)
    if ended.returncode:
        raise SystemExit(f"{command[0]} failed: {(out / 'log.txt').read_text()[-500:]}")


def _kept(out: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (out / "out").rglob("*.parquet") if path.is_file())


def _clips(out: Path) -> int:
    return len(list((out / "run" / "work" / "clips").glob("*/*.mp4")))


def _shown(walls: list[float]) -> str:
    return " and ".join(f"{wall:.1f}" for wall in walls)
