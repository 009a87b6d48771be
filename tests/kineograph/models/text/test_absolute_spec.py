"""Specs that name the same encoder from any directory."""

import pytest

from kineograph.errors import UserError
from kineograph.models.text import absolute_spec, load_text_encoder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a folder and two files; home is another."""
    (tmp_path / "work" / "org").mkdir(parents=True)
    (tmp_path / "home" / "t5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work" / "w.safetensors").touch()
    (tmp_path / "work" / "openai").touch()
    return tmp_path


def test_what_lies_here_is_named_by_its_absolute_path(here):
    work, home = here / "work", here / "home"
    assert absolute_spec("t5:org") == f"t5:{work}/org"
    assert absolute_spec("t5:./../work/org/") == f"t5:{work}/org"
    assert absolute_spec("clip:~/t5+minilm") == f"clip:{home}/t5+minilm"
    assert absolute_spec("open_clip:local-dir:org") == f"open_clip:local-dir:{work}/org"
    assert absolute_spec("open_clip:org") == f"open_clip:{work}/org"
    assert absolute_spec("open_clip:ViT-B-32/w.safetensors") == f"open_clip:ViT-B-32/{work}/w.safetensors"


@pytest.mark.parametrize(
    "spec",
    ["minilm", "labels", "t5:google/t5-v1_1-xxl", "open_clip:ViT-B-32/openai", "open_clip:hf-hub:org/name", "t5:/gone"],
)
def test_other_names_stay(here, spec):
    assert absolute_spec(spec) == spec


def test_it_may_be_asked_twice(here):
    spec = "minilm+t5:org+open_clip:ViT-B-32/w.safetensors"
    assert absolute_spec(absolute_spec(spec)) == absolute_spec(spec)


def test_a_wrong_form_is_named(here):
    with pytest.raises(UserError, match="no text encoder 'bert'"):
        absolute_spec("bert")


def test_the_absolute_name_loads_the_same_encoder(t5_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(t5_folder.parent)
    name = absolute_spec(f"t5:{t5_folder.name}")
    here = load_text_encoder(f"t5:{t5_folder.name}").fingerprint
    monkeypatch.chdir(tmp_path)
    assert load_text_encoder(name).fingerprint == here
