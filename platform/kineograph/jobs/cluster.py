"""Where a job runs: the config model of ``clusters/*.yaml``. Sizes and addresses only."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from kineograph.config import Config, load_recipe

ClusterKind = Literal["local", "ray"]


class ClusterConfig(Config):
    """One place to run jobs."""

    kind: ClusterKind = "local"
    """``local``: a child process on this machine. ``ray``: a running Ray cluster, through its Jobs API."""
    address: str = "http://127.0.0.1:8265"
    """URL of the Ray dashboard, as ``ray start --head`` prints it. Used by ``ray`` only."""
    runs_dir: str | None = None
    """Absolute path where runs are kept, the same on every node; None: ./runs, for this machine only."""
    ship_code: bool = True
    """Upload the submitter's kineograph and pipelines packages, so that the cluster runs this very code."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the job, e.g. MLFLOW_TRACKING_URI."""
    entrypoint_num_cpus: float = Field(default=0.0, ge=0)
    """CPUs that Ray reserves for the job's driver, besides those its tasks take."""
    python: str = ""
    """The Python that runs the job; empty is this one on this machine, and ``python`` on others."""

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        url = urlsplit(self.address)
        if self.kind == "ray" and (url.scheme not in ("http", "https") or not url.hostname):
            raise ValueError(f"address is the URL of the Ray dashboard, e.g. http://head:8265, not {self.address!r}")
        if self.kind == "ray" and self.runs_dir is not None and not is_absolute(self.runs_dir):
            raise ValueError(f"runs_dir is an absolute path or a URL, not {self.runs_dir!r}")
        return self

    @property
    def is_here(self) -> bool:
        """Whether the job sees this machine's files: it is local, or the dashboard is on loopback."""
        if self.kind == "local":
            return True
        host = urlsplit(self.address).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def where(self) -> str:
        """The place in a few words for people."""
        return "this machine" if self.kind == "local" else self.address


def load_cluster(path: str | Path) -> ClusterConfig:
    """Read a cluster file. Raises RecipeError with the key that does not fit."""
    return load_recipe(path, ClusterConfig)


def is_absolute(path: str) -> bool:
    """Whether ``path`` means the same file from any working directory: an absolute path or a URL."""
    return "://" in path or path.startswith("/")
