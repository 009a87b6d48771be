"""A folder of videos: which of them are there, a list of all, and a picture of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.errors import UserError
from kineograph.generation.files import small, spaced
from kineograph.generation.making import Order
from kineograph.generation.settings import Settings, read_settings
from kineograph.media.encode import contact_sheet, write_png
from kineograph.media.faults import MediaFault
from kineograph.media.footage import Footage
from kineograph.store.commit import write_text

LIST, SHEET = "prompts.jsonl", "contact-sheet.png"
MAX_SHEET_ROWS = 40


class VideoFolder:
    """Videos of several prompts and seeds in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[Path, np.ndarray] = {}

    def has(self, order: Order) -> bool:
        """Whether the video is there as it would be made."""
        return _find_settings(order.path) == order.settings

    def add(self, order: Order, frames: np.ndarray) -> None:
        """Take a few frames (n H W 3) of a video that was made, for the contact sheet."""
        if len(self._rows) < MAX_SHEET_ROWS:
            self._rows[order.path] = frames

    def finish(self, orders: Sequence[Order]) -> dict[str, Any]:
        """Write the list of ``orders``, all of which are there, and the contact sheet of the first of them."""
        rows = [_row(order) for order in orders]
        write_text(self.path / LIST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        shown = orders[:MAX_SHEET_ROWS]
        pictures = [self._rows[o.path] if o.path in self._rows else _read_frames(o) for o in shown]
        write_png(self.path / SHEET, contact_sheet(pictures, [order.settings.prompt for order in shown]))
        return {
            "out": str(self.path),
            "prompts": str(self.path / LIST),
            "contact_sheet": str(self.path / SHEET),
            "videos": rows,
        }


def _row(order: Order) -> dict[str, Any]:
    settings = order.settings
    return {
        "video": order.path.name,
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "seed": settings.seed,
        "frames": settings.frames,
        "fps": settings.fps,
        "seconds": settings.frames / settings.fps,
    }


def _read_frames(order: Order) -> np.ndarray:
    """The frames of a finished video that its row of the contact sheet shows."""
    settings = order.settings
    wanted = set(spaced(settings.frames))
    try:
        footage = Footage.open(order.path)
        frames = enumerate(footage.frames(settings.height, settings.width, settings.fps, 0, settings.frames))
        return small(np.stack([frame for number, frame in frames if number in wanted]))
    except MediaFault as fault:
        raise UserError(f"{order.path} cannot be read ({fault}): delete it and run the same command again") from fault


def _find_settings(path: Path) -> Settings | None:
    try:
        return read_settings(path) if path.is_file() else None
    except UserError:
        return None
