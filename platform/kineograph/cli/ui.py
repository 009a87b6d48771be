"""`kineo ui`: the dashboard in a browser."""

from __future__ import annotations

from pathlib import Path

import click

from kineograph.cli.output import emit, json_option

EPILOG = """\b
Examples:
  kineo ui                        the runs under ./runs
  kineo ui runs/demo --open       and show it in the browser
  kineo ui /shared/runs --port 9000 --no-mlflow
"""


@click.command(epilog=EPILOG)
@click.argument("runs_dir", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one.")
@click.option("--no-mlflow", is_flag=True, help="Do not start MLflow's server.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@json_option
def ui(runs_dir: Path, port: int, no_mlflow: bool, open_browser: bool, as_json: bool) -> None:
    """Show the runs of RUNS_DIR, their reports and MLflow, on this machine only. Ctrl-C ends it."""
    from kineograph.ui.serve import serve

    def announce(url: str, mlflow_url: str | None) -> None:
        beside = f"\nMLflow    {mlflow_url}  (takes some seconds to start)" if mlflow_url else ""
        emit({"url": url, "mlflow_url": mlflow_url}, as_json, f"dashboard {url}{beside}\nCtrl-C ends it")

    serve(runs_dir, port, not no_mlflow, open_browser, announce)
