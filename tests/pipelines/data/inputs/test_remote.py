"""Against a real S3 endpoint (moto's server) on loopback, and servers that lie."""

import http.server
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

from kineograph.errors import UserError
from kineograph.media.faults import MediaFault
from kineograph.store.schema import Reason
from pipelines.data.inputs import remote
from pipelines.data.inputs.locations import locate_beside
from pipelines.data.inputs.remote import local_copy, scratch_folder
from pipelines.data.inputs.sources import Caption, Inputs, list_sources

MANY = 1 << 30
BODY = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def store(server):
    """A client of the server, with an empty bucket called bkt."""
    import requests

    requests.post(f"{server}/moto-api/reset", timeout=10)
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="bkt")
    return client


@pytest.fixture
def inputs(server):
    return Inputs(storage_options={"endpoint_url": server})


@contextmanager
def asked(caplog, method):
    """The paths that the server was asked for by ``method``."""
    paths = []
    with caplog.at_level(logging.INFO, "werkzeug"):
        caplog.clear()
        yield paths
        lines = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
        paths += [line.split(f"{method} ")[1].split()[0] for line in lines if f"{method} /" in line]


def put(store, **bodies):
    for key, body in bodies.items():
        store.put_object(Bucket="bkt", Key=key, Body=body)


def test_a_prefix_is_listed_with_its_sidecars_and_opens_no_media(store, inputs, caplog):
    bodies = {
        "raw/a.mp4": b"x",
        "raw/a.txt": b"a cat",
        "raw/d/b [1].webm": b"x",
        "raw/d/b [1].json": b'{"captions": [{"caption": "b", "start_s": 0, "end_s": 1}]}',
        "raw/d/c.png": b"x",
        "raw/d/c.txt": b"x" * (2 << 20),
        "raw/e.pdf": b"x",
        "raw/folder/": b"",
        "rawer/z.mp4": b"x",
    }
    put(store, **bodies)
    with asked(caplog, "GET") as paths:
        listing = list_sources("s3://bkt/raw/", inputs)
    assert [(source.uri, source.path, source.captions) for source in listing.sources] == [
        ("a.mp4", "s3://bkt/raw/a.mp4", (Caption("a cat"),)),
        ("d/b [1].webm", "s3://bkt/raw/d/b [1].webm", (Caption("b", 0.0, 1.0),)),
        ("d/c.png", "s3://bkt/raw/d/c.png", ()),
    ]
    assert "larger" in listing.sources[2].warning
    assert listing.others == {".pdf": 1}
    read = sorted(path.partition("?")[0] for path in paths)
    assert read == ["/bkt", "/bkt/raw/a.txt", "/bkt/raw/d/b%20[1].json"]


def test_a_glob_and_a_file_of_a_store_are_inputs(store, inputs):
    put(store, **{"raw/a.mp4": b"x", "raw/a.txt": b"a cat", "raw/d/b.mp4": b"x", "raw/d/e/c.mp4": b"x"})
    assert [source.uri for source in list_sources("s3://bkt/raw/**/*.mp4", inputs).sources] == [
        "a.mp4",
        "d/b.mp4",
        "d/e/c.mp4",
    ]
    assert [source.uri for source in list_sources("s3://bkt/raw/*/*.mp4", inputs).sources] == ["d/b.mp4"]
    (source,) = list_sources("s3://bkt/raw/a.mp4", inputs).sources
    assert (source.uri, source.path, source.captions) == ("a.mp4", "s3://bkt/raw/a.mp4", (Caption("a cat"),))


def test_a_manifest_in_a_store_names_what_lies_beside_it(store, inputs):
    put(store, **{"lists/m.csv": "uri,caption\n../raw/a.mp4,one\ns3://other/b.mp4,two\n"})
    found = list_sources("s3://bkt/lists/m.csv", inputs).sources
    assert [(source.uri, source.path) for source in found] == [
        ("../raw/a.mp4", "s3://bkt/raw/a.mp4"),
        ("s3://other/b.mp4", "s3://other/b.mp4"),
    ]


@pytest.mark.parametrize("uri", ["/etc/a.mp4", "file:///etc/a.mp4", "../../other/a.mp4"])
def test_a_manifest_in_a_store_names_no_file_of_this_machine(store, inputs, uri):
    put(store, **{"lists/m.csv": f"uri\na.mp4\n{uri}\n"})
    with pytest.raises(UserError, match=r"s3://bkt/lists/m\.csv, line 3: .*(file of this machine|leaves the bucket)"):
        list_sources("s3://bkt/lists/m.csv", inputs)


@pytest.mark.parametrize("uri", ["file:/etc/a.mp4", "file:///etc/a.mp4", "http:x.mp4", "data:,x"])
def test_a_manifest_behind_https_names_no_file_of_this_machine(uri):
    from pipelines.data.inputs.locations import Location

    with pytest.raises(UserError):
        locate_beside(uri, Location("https", "https://host/lists/"), Inputs(allow_https=True))


@pytest.mark.parametrize("input", ["s3://nowhere/raw", "s3://bkt/nothing", "s3://bkt/nothing.mp4", "s3://bkt/m.csv"])
def test_a_missing_bucket_or_object_is_an_error_of_one_line(store, inputs, input):
    with pytest.raises(UserError, match="does not exist") as caught:
        list_sources(input, inputs)
    assert "\n" not in str(caught.value)


def test_without_credentials_the_message_says_what_to_do(server, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    inputs = Inputs(storage_options={"endpoint_url": server.replace("127.0.0.1", "localhost")})
    with pytest.raises(UserError, match=r"no credentials were found: set AWS_PROFILE"):
        list_sources("s3://bkt/raw", inputs)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        list_sources("gs://b/raw")


def test_plain_http_is_refused_and_https_is_off():
    with pytest.raises(UserError, match="plain http is never read"):
        list_sources("http://127.0.0.1:9/a.mp4", Inputs(allow_https=True))
    with pytest.raises(UserError, match=r"inputs\.allow_https=true"):
        list_sources("https://127.0.0.1:9/a.mp4")


def test_a_local_file_is_given_as_it_is(tmp_path):
    with local_copy(tmp_path / "a.mp4", tmp_path / "scratch", Inputs(), MANY) as path:
        assert path == tmp_path / "a.mp4"
    assert not (tmp_path / "scratch").exists()


def test_an_object_is_fetched_once_and_again_when_it_changed(store, inputs, tmp_path, caplog):
    put(store, **{"a.mp4": BODY})
    with asked(caplog, "GET") as paths:
        for _ in range(2):
            with local_copy("s3://bkt/a.mp4", tmp_path, inputs, MANY) as path:
                assert path.read_bytes() == BODY
                assert path.suffix == ".mp4"
    assert paths == ["/bkt/a.mp4"]
    put(store, **{"a.mp4": BODY[::-1]})
    with local_copy("s3://bkt/a.mp4", tmp_path, inputs, MANY) as path:
        assert path.read_bytes() == BODY[::-1]
    store.delete_object(Bucket="bkt", Key="a.mp4")
    with local_copy("s3://bkt/a.mp4", tmp_path, inputs, MANY) as path:
        assert path.read_bytes() == BODY[::-1]


def test_a_large_object_comes_in_pieces(store, inputs, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(remote, "_PIECE_BYTES", 40_000)
    put(store, **{"a.mp4": BODY})
    with asked(caplog, "GET") as paths, local_copy("s3://bkt/a.mp4", tmp_path, inputs, MANY) as path:
        assert path.read_bytes() == BODY
    assert len(paths) == 3


def test_an_empty_object_is_a_file(store, inputs, tmp_path):
    put(store, **{"a.mp4": b""})
    with local_copy("s3://bkt/a.mp4", tmp_path, inputs, MANY) as path:
        assert path.read_bytes() == b""


def fault_of(uri, scratch, inputs, max_bytes=MANY):
    with pytest.raises(MediaFault) as caught, local_copy(uri, scratch, inputs, max_bytes):
        pass
    left = [name for name in os.listdir(scratch) if name != ".total"] if scratch.exists() else []
    assert left == []
    return caught.value.reason, caught.value.detail


def test_a_lost_object_is_a_fault(store, inputs, tmp_path):
    assert fault_of("s3://bkt/a.mp4", tmp_path, inputs) == (Reason.FETCH_FAILED, "it does not exist")
    put(store, **{"d/a.mp4": b"x"})
    assert fault_of("s3://bkt/d", tmp_path, inputs) == (Reason.FETCH_FAILED, "it is a folder")


def test_an_object_past_a_limit_is_too_large(store, inputs, tmp_path):
    put(store, **{"a.mp4": BODY})
    assert fault_of("s3://bkt/a.mp4", tmp_path, inputs, 1000)[0] == Reason.TOO_LARGE
    small = inputs.model_copy(update={"scratch_bytes": 2000})
    reason, detail = fault_of("s3://bkt/a.mp4", tmp_path, small)
    assert reason == Reason.TOO_LARGE
    assert "inputs.scratch_bytes" in detail


def test_the_scratch_folder_stays_within_its_bound(store, inputs, tmp_path):
    small = inputs.model_copy(update={"scratch_bytes": 250_000})
    put(store, **{f"{i}.mp4": BODY for i in range(5)})
    for i in range(5):
        with local_copy(f"s3://bkt/{i}.mp4", tmp_path, small, MANY):
            assert sum(entry.stat().st_size for entry in os.scandir(tmp_path) if entry.name != ".total") <= 250_000


def test_a_fetch_past_its_time_is_a_fault(store, inputs, tmp_path):
    put(store, **{"a.mp4": BODY})
    late = inputs.model_copy(update={"fetch_seconds": 1e-9})
    reason, detail = fault_of("s3://bkt/a.mp4", tmp_path, late)
    assert reason == Reason.FETCH_FAILED
    assert "inputs.fetch_seconds" in detail


FETCH = """
import pathlib, sys
from pipelines.data.inputs.remote import local_copy
from pipelines.data.inputs.sources import Inputs
inputs = Inputs(storage_options={"endpoint_url": sys.argv[1]}, scratch_bytes=250_000)
for i in (0, 1, 2, 0):
    with local_copy(f"s3://bkt/{i}.mp4", pathlib.Path(sys.argv[2]), inputs, 1 << 30) as path:
        assert path.read_bytes() == bytes([i]) * 100_000
"""


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def test_processes_share_a_scratch_folder(store, server, tmp_path):
    put(store, **{f"{i}.mp4": bytes([i]) * 100_000 for i in range(3)})
    command = [sys.executable, "-c", FETCH, server, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment()) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    total = sum(entry.stat().st_size for entry in os.scandir(tmp_path) if entry.name != ".total")
    assert total <= 250_000
    assert int((tmp_path / ".total").read_text()) == total


@contextmanager
def lying(declared, *answers):
    """An S3 endpoint that declares ``declared`` bytes of every object and sends ``answers``, the last one for ever."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(declared))
            self.send_header("ETag", '"1"')
            self.end_headers()

        def do_GET(self):
            sends = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(206)
            self.send_header("Content-Length", str(len(sends)))
            self.end_headers()
            self.wfile.write(sends)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Inputs(storage_options={"endpoint_url": f"http://127.0.0.1:{server.server_port}"})
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("declared", "sends", "detail"),
    [(1000, b"", "0 of 1000 bytes arrived"), (10, b"x" * 1000, "more arrived than the 10 bytes")],
)
def test_an_object_that_is_not_as_declared_is_a_fault(tmp_path, monkeypatch, declared, sends, detail):
    monkeypatch.setattr(remote, "_BACKOFF_S", 0.01)
    with lying(declared, sends) as inputs:
        reason, said = fault_of("s3://bkt/a.mp4", tmp_path, inputs)
    assert reason == Reason.FETCH_FAILED
    assert detail in said


def test_what_did_not_arrive_whole_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF_S", 0.01)
    with lying(10, b"", b"0123456789") as inputs, local_copy("s3://bkt/a.mp4", tmp_path, inputs, MANY) as path:
        assert path.read_bytes() == b"0123456789"


def test_scratch_lies_in_the_run_unless_said_otherwise(tmp_path):
    assert scratch_folder(tmp_path, Inputs()) == tmp_path / "work" / "scratch"
    assert scratch_folder(tmp_path, Inputs(scratch="/disk")).as_posix() == "/disk"
