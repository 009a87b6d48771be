"""Against a server for https on loopback, whose certificate is made here."""

import datetime
import hashlib
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kineograph.media.faults import MediaFault
from kineograph.store.schema import Reason
from pipelines.data.inputs import remote
from pipelines.data.inputs.remote import local_copy
from pipelines.data.inputs.sources import Inputs

BODY = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def https(tmp_path_factory):
    """(URL, certificate file) of a server for https that serves, redirects and never ends."""
    folder = tmp_path_factory.mktemp("https")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(private + certificate.public_bytes(pem))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            to = {"/to-https": "/a.mp4", "/to-file": "file:///etc/hostname", "/to-http": plain}.get(self.path)
            if to:
                self.answer(302, {"Location": to}, b"")
            elif self.path == "/endless":
                self.answer(200, {"Transfer-Encoding": "chunked"}, None)
                with suppress(OSError):
                    while self.command == "GET":
                        self.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            elif self.path.startswith("/a.mp4"):
                self.answer(200, {}, BODY)
            else:
                self.answer(404, {}, b"")

        do_HEAD = do_GET

        def answer(self, status, headers, body):
            self.send_response(status)
            if body is not None:
                headers = {**headers, "Content-Length": str(len(body))}
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    plain = f"http://localhost:{servers[1].server_port}/a.mp4"
    servers[0].socket = context.wrap_socket(servers[0].socket, server_side=True)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{servers[0].server_port}", folder / "both.pem"
    for server in servers:
        server.shutdown()
        server.server_close()


FETCH_HTTPS = """
import hashlib, json, pathlib, sys
from kineograph.media.faults import MediaFault
from pipelines.data.inputs import remote
from pipelines.data.inputs.sources import Inputs
remote._BACKOFF_S = 0.01
results = {}
for name in ("a.mp4", "to-https", "to-http", "to-file", "endless", "lost"):
    try:
        url = f"{sys.argv[1]}/{name}?token=s3cret"[: None if name == "a.mp4" else -13]
        with remote.local_copy(url, pathlib.Path(sys.argv[2]), Inputs(allow_https=True), 1 << 20) as path:
            results[name] = ["", hashlib.sha256(path.read_bytes()).hexdigest()]
    except MediaFault as fault:
        results[name] = [fault.reason.value, fault.detail]
print(json.dumps(results))
"""


def test_https_is_fetched_and_leads_nowhere_else(https, tmp_path):
    url, certificate = https
    # A process of its own: the trusted certificates are read once.
    path = os.pathsep.join(sys.path)
    trusting = {**os.environ, "PYTHONPATH": path, "SSL_CERT_FILE": str(certificate), "no_proxy": "localhost"}
    command = [sys.executable, "-c", FETCH_HTTPS, url, str(tmp_path)]
    results = json.loads(subprocess.run(command, env=trusting, capture_output=True, timeout=100, check=True).stdout)
    whole = ["", hashlib.sha256(BODY).hexdigest()]
    assert results["a.mp4"] == results["to-https"] == whole
    assert results["to-http"] == ["fetch_failed", "the server redirects to plain http"]
    assert results["to-file"][0] == "fetch_failed"
    assert results["endless"][0] == "too_large"
    assert results["lost"][0] == "fetch_failed"
    assert "404" in results["lost"][1]


def test_a_server_that_is_not_there_is_a_fault_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF_S", 0.01)
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"https://me:pw@127.0.0.1:{taken.getsockname()[1]}/a.mp4"
        with pytest.raises(MediaFault) as caught, local_copy(url, tmp_path, Inputs(allow_https=True), 1 << 20):
            pass
    assert caught.value.reason == Reason.FETCH_FAILED
    assert "pw" not in caught.value.detail
    assert "\n" not in caught.value.detail
