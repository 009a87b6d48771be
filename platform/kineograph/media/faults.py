"""What can be wrong with a media file, as one exception that carries a reason of the ledger."""

from __future__ import annotations

from kineograph.store.schema import Reason


class MediaFault(Exception):
    """A file that gives no usable frames. It becomes a row of the ledger and never stops a run."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"
