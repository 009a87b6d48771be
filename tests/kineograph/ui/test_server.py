"""The dashboard as a browser meets it: a real `kineo ui` process, real HTTP requests."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

Fill = Callable[[Path], Path]


class Dashboard:
    def __init__(self, runs_dir: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "kineograph.cli.main",
            "ui",
            str(runs_dir),
            "--port",
            "0",
            "--json",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.facts = json.loads(self.process.stdout.readline())
        self.port = int(self.facts["url"].rstrip("/").rpartition(":")[2])

    def get(self, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str, dict[str, str]]:
        """The path goes out as it is: no client tidies away its dots."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        return (
            answer.status,
            answer.read().decode(),
            {name.lower(): value for name, value in answer.getheaders()},
        )

    def stop(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, fill: Fill) -> Path:
    folder = tmp_path_factory.mktemp("ui")
    root = fill(folder / "runs")
    (folder / "report.html").write_text("outside")
    (root / "data" / "secret.txt").write_text("secret")
    (root / "linked").mkdir()
    (root / "linked" / "report.html").symlink_to(folder / "report.html")
    (root / "away").symlink_to(folder)
    (root / "<b>&").mkdir()
    for name in ("recipe.yaml", "report.html"):
        (root / "<b>&" / name).write_text("odd name")
    return root


@pytest.fixture(scope="module")
def dashboard(root: Path) -> Iterator[Dashboard]:
    dashboard = Dashboard(root, "--no-mlflow")
    yield dashboard
    assert dashboard.stop() == 0


def test_the_start_page_links_every_report(dashboard: Dashboard) -> None:
    status, page, headers = dashboard.get("/")
    assert status == 200
    assert 'href="/runs/data/report.html"' in page
    assert 'href="/runs/demo/eval/report.html"' in page
    assert "0.98 [0.95, 1.00]" in page
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
    assert dashboard.get("/start.css")[0] == 200


def test_names_of_foreign_folders_are_text_and_their_links_work(dashboard: Dashboard) -> None:
    page = dashboard.get("/")[1]
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert 'href="/runs/%3Cb%3E%26/report.html"' in page
    assert dashboard.get("/runs/%3Cb%3E%26/report.html")[1] == "odd name"


def test_a_report_runs_no_script_and_fetches_nothing(dashboard: Dashboard) -> None:
    status, body, headers = dashboard.get("/runs/data/report.html")
    assert (status, body) == (200, "<h1>ledger</h1>")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../report.html",
        "/runs/%2e%2e/report.html",
        "/runs/data/../../report.html",
        "/runs/data/..%2f..%2freport.html",
        "/runs/..%2freport.html",
        "/runs//report.html",
        "/runs/%2fetc/report.html",
        "/runs/away/report.html",
        "/runs/linked/report.html",
        "/runs/data/secret.txt",
        "/runs/data/report.html%00",
        "/runs/data/",
        "/runs/nope/report.html",
        "/runs/mlflow.db",
        "/../../etc/passwd",
    ],
)
def test_nothing_else_is_served(dashboard: Dashboard, path: str) -> None:
    status, body, _ = dashboard.get(path)
    assert status == 404
    assert "outside" not in body
    assert "secret" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_name_is_refused(dashboard: Dashboard, host: str) -> None:
    assert dashboard.get("/", host=host)[0] == 400
    assert dashboard.get("/", host=f"localhost:{dashboard.port}")[0] == 200


def test_it_only_reads(dashboard: Dashboard) -> None:
    assert dashboard.get("/", method="POST")[0] == 405
    assert dashboard.get("/runs/data/report.html", method="DELETE")[0] == 405


def test_it_listens_on_loopback_alone(dashboard: Dashboard) -> None:
    listening = psutil.Process(dashboard.process.pid).net_connections(kind="inet")
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def run_ui(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "kineograph.cli.main", "ui", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_missing_directory_is_one_line(tmp_path: Path) -> None:
    code, said = run_ui(str(tmp_path / "nope"))
    assert (code, said.count("\n")) == (2, 1)
    assert "no directory" in said


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = run_ui(str(tmp_path), "--port", str(port))
    assert (code, said.count("\n")) == (2, 1)
    assert f"port {port} is taken" in said


@pytest.mark.slow
def test_mlflow_comes_up_beside_it_on_the_projects_store_and_goes_with_it(tmp_path: Path, fill: Fill) -> None:
    dashboard = Dashboard(fill(tmp_path))
    family = psutil.Process(dashboard.process.pid).children(recursive=True)
    try:
        port = int(dashboard.facts["mlflow_url"].rpartition(":")[2])
        server = Server(port)
        server.wait_until_up()
        assert dashboard.facts["mlflow_url"] in dashboard.get("/")[1]
        assert server.get("/", "evil.example") == 403
        assert server.get("/", f"127.0.0.1:{port}") == 200
        assert (tmp_path / "mlflow.db").is_file()
        family = psutil.Process(dashboard.process.pid).children(recursive=True)
        assert family
    finally:
        code = dashboard.stop(signal.SIGTERM)
    assert code == 0
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert server.get("/health", f"127.0.0.1:{port}") is None


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, host: str) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers={"Host": host})
            return connection.getresponse().status
        except OSError:
            return None

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while self.get("/health", f"127.0.0.1:{self.port}") != 200:
            assert time.monotonic() < deadline, "MLflow did not come up"
            time.sleep(0.3)
