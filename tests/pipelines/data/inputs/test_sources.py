import json
import os

import pytest

from kineograph.errors import UserError
from pipelines.data.inputs.sources import Caption, Source, caption_of, list_sources, resolved


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_media_are_found_to_the_bottom_and_sorted(tmp_path):
    touch(tmp_path, "b.MP4", "a/z.png", "a/b/c.webm", "a.txt", "truth.json", "readme.md", "x.pdf", "noext")
    listing = list_sources(tmp_path)
    assert [source.uri for source in listing.sources] == ["a/b/c.webm", "a/z.png", "b.MP4"]
    assert "left out 3 files" in listing.note


def test_a_file_is_an_input_of_its_own(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    assert [source.uri for source in list_sources(tmp_path / "b.mp4").sources] == ["b.mp4"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_no_input_and_no_media_are_errors_of_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(UserError, match=r"does not exist|no media found"):
        list_sources(tmp_path / name)


def test_a_name_that_is_no_utf8_is_written_and_opens(tmp_path):
    with open(os.fsencode(tmp_path) + b"/bad\xff.mp4", "wb") as file:
        file.write(b"x")
    (source,) = list_sources(tmp_path).sources
    assert source.uri == "bad\\xff.mp4"
    again = Source.from_json(json.loads(json.dumps(source.to_json())))
    with open(again.path, "rb") as file:
        assert file.read() == b"x"


def sidecar(tmp_path, name, content):
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_bytes(content)
    return list_sources(tmp_path).sources[0]


def test_a_text_sidecar_is_the_caption_of_the_whole(tmp_path):
    source = sidecar(tmp_path, "a.txt", b"  a cat\n on a mat \0")
    assert source.captions == (Caption("a cat on a mat"),)


def test_a_json_sidecar_captions_spans(tmp_path):
    spans = {"captions": [{"start_s": 0, "end_s": 2.5, "caption": "one"}]}
    assert sidecar(tmp_path, "a.json", json.dumps(spans).encode()).captions == (Caption("one", 0.0, 2.5),)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"captions": 3}', b'{"captions": [{"caption": 1, "start_s": 0, "end_s": 1}]}', b"\xff"],
)
def test_a_broken_sidecar_is_a_warning(tmp_path, content):
    source = sidecar(tmp_path, "a.json", content)
    assert source.captions == ()
    assert "caption file" in source.warning


def test_a_huge_sidecar_is_not_read(tmp_path):
    assert "larger" in sidecar(tmp_path, "a.txt", b"x" * (2 << 20)).warning


def test_the_caption_that_overlaps_most_wins():
    captions = (Caption("a", 0, 3), Caption("b", 3, 10))
    assert caption_of(captions, 0, 3) == "a"
    assert caption_of(captions, 2, 5) == "b"
    assert caption_of(captions, 2, 4) == "a"  # the earlier on a tie
    assert caption_of(captions, 11, 12) == ""
    assert caption_of((Caption("whole"),), 50, 60) == "whole"
    assert caption_of((Caption("whole"),), 0, 0) == "whole"  # an image


def test_a_glob_takes_what_it_matches_with_its_sidecars(tmp_path):
    touch(tmp_path, "raw/a.mp4", "raw/b/c.mp4", "raw/b/c/d.mp4", "raw/e.webm", "raw/b/notes.md")
    (tmp_path / "raw/b/c.txt").write_text("sea")
    deep = list_sources(f"{tmp_path}/raw/**/*.mp4")
    assert [source.uri for source in deep.sources] == ["a.mp4", "b/c.mp4", "b/c/d.mp4"]
    assert deep.sources[1].captions == (Caption("sea"),)
    assert deep.note == ""
    assert [source.uri for source in list_sources(f"{tmp_path}/raw/*/*").sources] == ["b/c.mp4"]
    assert [source.uri for source in list_sources(f"file://{tmp_path}/raw/?.[mw]*").sources] == ["a.mp4", "e.webm"]
    with pytest.raises(UserError, match="no media found"):
        list_sources(f"{tmp_path}/raw/*.mkv")


def test_a_name_with_a_bracket_is_a_name_when_it_is_there(tmp_path):
    touch(tmp_path, "a[1].mp4", "a1.mp4")
    assert [source.uri for source in list_sources(tmp_path / "a[1].mp4").sources] == ["a[1].mp4"]


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "closed/b.mp4")
    real = os.scandir

    def scandir(path):  # permissions do not bind root, who runs tests in containers
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_sources(tmp_path)
    assert [source.uri for source in listing.sources] == ["a.mp4"]
    assert "closed" in listing.note


def test_a_pipe_beside_a_video_does_not_hang_the_listing(tmp_path):
    touch(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "a.txt")
    assert "no regular file" in list_sources(tmp_path).sources[0].warning


def test_a_json_sidecar_may_caption_the_whole(tmp_path):
    assert sidecar(tmp_path, "a.json", b'{"caption": "a cat", "id": 3}').captions == (Caption("a cat"),)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"captions": [{"caption": "a", "start_s": NaN}]}'])
def test_a_hostile_sidecar_is_a_warning(tmp_path, content):
    assert "caption file" in sidecar(tmp_path, "a.json", content).warning


def test_paths_hold_in_any_directory(tmp_path, monkeypatch):
    touch(tmp_path, "raw/a.mp4", "raw/a.txt")
    (tmp_path / "raw/m.csv").write_text("uri\na.mp4\n")
    monkeypatch.chdir(tmp_path)
    for input in ("raw", "raw/a.mp4", "raw/*.mp4", "./raw/m.csv"):
        (source,) = list_sources(input).sources
        assert (source.uri, source.path) == ("a.mp4", str(tmp_path / "raw/a.mp4"))
    monkeypatch.chdir(tmp_path / "raw")
    for input in (".", "a.mp4", "*.mp4", "m.csv"):
        (source,) = list_sources(input).sources
        assert (source.uri, source.path) == ("a.mp4", str(tmp_path / "raw/a.mp4"))


def test_what_a_recipe_stores_is_absolute_and_holds_no_credentials(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved("raw/*.mp4") == f"{tmp_path}/raw/*.mp4"
    assert resolved("s3://me:pw@bucket/raw/") == "s3://bucket/raw"
