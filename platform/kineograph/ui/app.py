"""The start page: runs, their reports, the way to MLflow. Read-only, for loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from kineograph.ui.runs import SERVED_FILES, find_runs

_HERE = Path(__file__).parent
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".yaml": "text/plain; charset=utf-8",
}
_COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
START_POLICY = f"default-src 'none'; style-src 'self'; img-src data:; {_NOTHING_ELSE}"
# Reports show names and captions from foreign files: no script runs in them, and nothing is fetched.
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; font-src data:; "
    f"{_NOTHING_ELSE}"
)


MlflowState = Callable[[], tuple[str, str] | None]


def make_app(runs_dir: Path, mlflow_state: MlflowState = lambda: None) -> Starlette:
    """The dashboard over ``runs_dir``.

    ``mlflow_state`` gives MLflow's URL and state (``up`` | ``starting`` | ``down``) at each view, or None.
    """
    root = runs_dir.resolve()
    template = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("start.html")

    def start(request: Request) -> Response:
        html = template.render(runs=find_runs(root), root=str(root), mlflow=mlflow_state())
        return HTMLResponse(html, headers={**_COMMON_HEADERS, "Content-Security-Policy": START_POLICY})

    def style(request: Request) -> Response:
        return FileResponse(_HERE / "start.css", media_type="text/css", headers=_COMMON_HEADERS)

    def runs(request: Request) -> Response:
        facts = [
            {
                "kind": r.kind,
                "path": r.path,
                "finished": r.finished,
                "numbers": dict(r.numbers),
                "files": r.files,
            }
            for r in find_runs(root)
        ]
        return JSONResponse({"runs_dir": str(root), "runs": facts}, headers=_COMMON_HEADERS)

    def served(request: Request) -> Response:
        path = resolve(root, request.path_params["path"])
        if path is None:
            raise HTTPException(404)
        headers = {**_COMMON_HEADERS, "Content-Security-Policy": REPORT_POLICY}
        return FileResponse(path, media_type=_CONTENT_TYPES[path.suffix], headers=headers)

    return Starlette(
        routes=[
            Route("/", start),
            Route("/start.css", style),
            Route("/api/runs", runs),
            Route("/runs/{path:path}", served),
        ],
        # A page on another site can point its own name at 127.0.0.1; only loopback's names are answered.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def resolve(root: Path, path: str) -> Path | None:
    """The file that ``path`` names inside ``root``: of an allowed name, and reached through no link or "..".

    None for everything else.
    """
    parts = path.split("/")
    if parts[-1] not in SERVED_FILES or "\0" in path or any(part in ("", "..") for part in parts):
        return None
    asked = root.joinpath(*(part for part in parts if part != "."))
    try:
        found = asked.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    # A link anywhere on the way makes the two differ, also one that stays inside.
    return found if found == asked and found.is_file() else None
