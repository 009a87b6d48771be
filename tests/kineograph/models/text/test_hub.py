"""Hub names: only safe files are downloaded, once, and a hub that cannot be reached is said so."""

import hashlib
import http.server
import json
import threading

import numpy as np
import pytest

from kineograph.errors import UserError
from kineograph.models.text import load_text_encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """The part of the hub's interface that a download uses, over files {repository: {path: bytes}}."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.served = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        for repo, files in self.server.repositories.items():
            if path.startswith(f"api/models/{repo}/tree/"):
                tree = [{"type": "file", "path": p, "size": len(d), "oid": oid(d)} for p, d in files.items()]
                return self.reply(json.dumps(tree).encode())
            if path.startswith(f"api/models/{repo}"):
                siblings = [{"rfilename": name} for name in files]
                return self.reply(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
            name = path.removeprefix(f"{repo}/resolve/").partition("/")[2]
            if path.startswith(f"{repo}/resolve/") and name in files:
                if self.command == "GET":
                    self.server.served.append(name)
                return self.reply(files[name])
        return self.reply(b"", 404)

    do_HEAD = do_GET

    def reply(self, data, status=200):
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{oid(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


def oid(data):
    return hashlib.sha256(data).hexdigest()


def use_hub(monkeypatch, address, cache):
    """As the variables HF_ENDPOINT and HF_HUB_CACHE would, had they been set before the import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def hub(t5_folder, open_clip_folder, tmp_path, monkeypatch):
    t5 = {path.name: path.read_bytes() for path in t5_folder.iterdir()}
    unsafe = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "README.md": b"words"}
    tokenizer = {name: data for name, data in t5.items() if name.startswith("tok")}
    encoder = {name: data for name, data in t5.items() if not name.startswith("tok")}
    server = Hub(
        {
            "org/t5": {**t5, **unsafe, "onnx/model.safetensors": b"", "model.fp16.safetensors": b""},
            "org/pipeline": {
                **{f"text_encoder_2/{name}": data for name, data in {**encoder, **unsafe}.items()},
                **{f"tokenizer_2/{name}": data for name, data in tokenizer.items()},
                "transformer/model.safetensors": b"large",
                "model_index.json": b"{}",
            },
            "org/clip": {path.name: path.read_bytes() for path in open_clip_folder.iterdir()} | unsafe,
            "org/unsafe": {**tokenizer, **unsafe, "config.json": t5["config.json"]},
        }
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["org/t5", "org/pipeline/text_encoder_2"])
def test_a_hub_name_is_downloaded_once_and_only_what_is_safe(hub, t5_folder, name):
    local = load_text_encoder(f"t5:{t5_folder}")
    from_hub = load_text_encoder(f"t5:{name}")
    np.testing.assert_array_equal(from_hub.encode(["a cat"])[0], local.encode(["a cat"])[0])
    assert from_hub.fingerprint == local.fingerprint
    served = {path.rpartition("/")[2] for path in hub.served}
    assert served == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert len(hub.served) == 4
    load_text_encoder(f"t5:{name}")
    assert len(hub.served) == 4


def test_what_was_downloaded_needs_no_network(hub):
    before = load_text_encoder("t5:org/t5").fingerprint
    hub.shutdown()
    hub.server_close()
    assert load_text_encoder("t5:org/t5").fingerprint == before


def test_open_clip_takes_a_hub_name(hub, open_clip_folder):
    local = load_text_encoder(f"open_clip:local-dir:{open_clip_folder}")
    from_hub = load_text_encoder("open_clip:hf-hub:org/clip")
    np.testing.assert_array_equal(from_hub.encode(["a cat"])[0], local.encode(["a cat"])[0])
    assert set(hub.served) == {"open_clip_config.json", "open_clip_model.safetensors"}


def test_a_tag_of_open_clip_is_downloaded_as_safetensors(hub, open_clip_folder, monkeypatch):
    import open_clip

    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    tags = {
        "ours": {"hf_hub": "org/clip/"},
        "openai": {"hf_hub": "org/clip/", "quick_gelu": True},
        "gone": {"hf_hub": "org/clip/old.bin"},
        "pickle": {"url": "https://example.org/model.pt"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    local = load_text_encoder(f"open_clip:local-dir:{open_clip_folder}")
    states = local.encode(["a cat"])[0]
    np.testing.assert_array_equal(load_text_encoder("open_clip:tiny/ours").encode(["a cat"])[0], states)
    assert np.abs(load_text_encoder("open_clip:tiny/openai").encode(["a cat"])[0] - states).max() > 0
    with pytest.raises(UserError, match=r"org/clip has no old.safetensors"):
        load_text_encoder("open_clip:tiny/gone")
    with pytest.raises(UserError, match="pickle only"):
        load_text_encoder("open_clip:tiny/pickle")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/none", "org/none cannot be had from http://127.0.0.1"),
        ("org/unsafe", "no model.safetensors"),
        ("org/t5/none", "no config.json"),
        ("not a name", "no such folder"),
        ("./none", "cannot be had|no such folder"),
        ("/none", "no such folder"),
    ],
)
def test_a_name_that_gives_nothing_is_said_in_one_line(hub, name, says):
    with pytest.raises(UserError, match=says) as caught:
        load_text_encoder(f"t5:{name}")
    assert "\n" not in str(caught.value)
    assert "pytorch_model.bin" not in hub.served


@pytest.mark.parametrize("spec", ["t5:org/t5", "open_clip:hf-hub:org/clip", "open_clip:ViT-B-32/laion2b_s34b_b79k"])
def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path, monkeypatch, spec):
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(UserError, match=r"cannot be had from http://127.0.0.1:9") as caught:
        load_text_encoder(spec)
    assert "\n" not in str(caught.value)
    assert "elsewhere and give the folder" in str(caught.value)
