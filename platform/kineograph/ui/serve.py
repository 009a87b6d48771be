"""Serve the dashboard until Ctrl-C, with MLflow beside it."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from kineograph.errors import UserError
from kineograph.ui.app import make_app
from kineograph.ui.mlflow_server import MlflowServer

HOST = "127.0.0.1"


def serve(
    runs_dir: Path,
    port: int,
    with_mlflow: bool,
    open_browser: bool,
    announce: Callable[[str, str | None], None],
) -> None:
    """Serve ``runs_dir`` on loopback; ``announce`` gets the page's URL and MLflow's. Ctrl-C ends it.

    Raises UserError when there is no such directory or the port is taken.
    """
    if not runs_dir.is_dir():
        raise UserError(f"no directory {runs_dir}: make a run first, e.g. 'kineo demo --out {runs_dir}'")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(listen(port)))
        # Whatever ends the dashboard, also a closed terminal, must not leave MLflow behind.
        for number in (signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, _leave))
        mlflow = stack.enter_context(MlflowServer(runs_dir)) if with_mlflow else None

        def mlflow_state() -> tuple[str, str] | None:
            if mlflow is None:
                return None
            return mlflow.url, "up" if mlflow.is_up else "starting" if mlflow.is_running else "down"

        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        server = uvicorn.Server(
            uvicorn.Config(make_app(runs_dir, mlflow_state), log_level="warning", server_header=False, lifespan="off")
        )
        announce(url, mlflow.url if mlflow else None)
        if open_browser:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 takes any free one. Raises UserError when it is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is taken" if taken else f"cannot be used ({error})"
        raise UserError(
            f"port {port} {reason}: give another, e.g. --port {port + 1 if port < 65535 else 8080}"
        ) from error
    return listener


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
