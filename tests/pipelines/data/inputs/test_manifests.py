import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kineograph.errors import UserError
from pipelines.data.inputs.sources import Caption, Inputs, Labels, Source, caption_of, labels_of, list_sources


def manifest(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list_sources(path).sources


def test_csv_jsonl_and_parquet_say_the_same(tmp_path):
    rows = [
        {"uri": "a.mp4", "caption": "a cat", "start": 1.0, "end": 2.5, "kind": "pet", "score": 3},
        {"uri": "b/c.mp4", "caption": None, "start": None, "end": None, "kind": None, "score": None},
    ]
    expected = [
        Source(
            "a.mp4",
            str(tmp_path / "a.mp4"),
            (Caption("a cat", 1.0, 2.5),),
            caption_source="manifest",
            spans=((1.0, 2.5),),
            labels={"kind": "pet", "score": 3},
        ),
        Source("b/c.mp4", str(tmp_path / "b/c.mp4")),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    assert list_sources(tmp_path / "m.parquet").sources == expected
    assert manifest(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows))) == expected
    text = "\ufeffuri, caption,start,end,kind,score\na.mp4,a cat,1,2.5,pet,3\n\nb/c.mp4,,,,,\n"
    csv = manifest(tmp_path, "m.csv", text)  # in which all cells are text
    assert csv[0].labels == {"kind": "pet", "score": "3"}
    assert csv[0].captions == expected[0].captions
    assert csv[1] == expected[1]


def test_rows_of_one_source_are_its_spans(tmp_path):
    text = "uri,start,end,caption,kind,owner\nx.mp4,5,9,two,b,me\n./x.mp4,0,4,one,a,me\nx.mp4,0,4,uno,a,me\n"
    (source,) = manifest(tmp_path, "m.csv", text)
    assert source.spans == ((0.0, 4.0), (5.0, 9.0))
    assert caption_of(source.captions, 0, 4) == "one"
    assert caption_of(source.captions, 4, 8) == "two"
    assert source.labels == {"owner": "me"}
    assert labels_of(source, 1, 3) == {"kind": "a", "owner": "me"}
    assert labels_of(source, 3, 9) == {"kind": "b", "owner": "me"}
    assert labels_of(source, 20, 30) == {"owner": "me"}


def test_a_row_of_a_stretch_says_more_of_it_than_a_row_of_the_whole():
    stretches = (Labels({"k": "whole"}), Labels({"k": "part"}, 2.0, 4.0))
    source = Source("a", "a", stretches=stretches, captions=(Caption("whole"), Caption("part", 2.0, 4.0)))
    assert labels_of(source, 2, 4) == {"k": "part"}
    assert labels_of(source, 0, 4) == {"k": "whole"}
    assert caption_of(source.captions, 2.5, 3) == "part"


def test_a_source_survives_json(tmp_path):
    text = "uri,start,end,caption,kind\nx.mp4,5,,two,b\nx.mp4,0,4,one,a\n"
    (source,) = manifest(tmp_path, "m.csv", text)
    assert Source.from_json(json.loads(json.dumps(source.to_json()))) == source


def test_uris_may_be_absolute_relative_or_remote_and_need_not_exist(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    rows = [str(tmp_path / "a.mp4"), "../b.mp4", "s3://u:pw@bucket/c d.mp4", f"file://{tmp_path}/e%20f.mp4"]
    found = manifest(folder, "m.csv", "uri\n" + "\n".join(rows))
    assert {(source.uri, source.path) for source in found} == {
        (str(tmp_path / "a.mp4"), str(tmp_path / "a.mp4")),
        ("../b.mp4", str(folder / "../b.mp4")),
        ("s3://bucket/c d.mp4", "s3://bucket/c d.mp4"),
        (f"file://{tmp_path}/e%20f.mp4", str(tmp_path / "e f.mp4")),
    }


def test_a_name_that_is_no_utf8_opens(tmp_path):
    (source,) = manifest(tmp_path, "m.csv", b"uri\nbad\xff.mp4\n")
    assert source.uri == "bad\\xff.mp4"
    assert source.path.encode("utf-8", "surrogateescape").endswith(b"/bad\xff.mp4")


def test_sidecars_caption_what_a_manifest_does_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"beside {name}")
    a, b = manifest(tmp_path, "m.csv", "uri,caption\na.mp4,\nb.mp4,listed\n")
    assert (a.captions, a.caption_source) == ((Caption("beside a"),), "sidecar")
    assert (b.captions, b.caption_source) == ((Caption("listed"),), "manifest")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"uri": ""}, "'uri' is empty"),
        ({"uri": 3}, "'uri' is text"),
        ({"uri": "a\0b"}, "NUL"),
        ({"uri": "\ud800.mp4"}, "encode"),
        ({"uri": "a.mp4", "start": "soon"}, "'start' is a number of seconds, not 'soon'"),
        ({"uri": "a.mp4", "start": -1}, "from 0"),
        ({"uri": "a.mp4", "end": 1e999}, "from 0"),
        ({"uri": "a.mp4", "start": True}, "number of seconds"),
        ({"uri": "a.mp4", "start": 3, "end": 3}, "not after"),
        ({"uri": "a.mp4", "caption": 5}, "a caption is text"),
        ({"uri": "a.mp4", "tags": ["x"]}, "'tags'"),
        ({"uri": "http://host/a.mp4"}, "plain http is never read"),
        ({"uri": "https://host/a.mp4"}, "inputs.allow_https=true"),
        ({"uri": "ftp://host/a.mp4"}, "scheme 'ftp'"),
        ({"uri": "simplecache::s3://bucket/a.mp4"}, "is not read"),
        ({"uri": "memory://a.mp4"}, "is not read"),
        ({"uri": "s3:///a.mp4"}, "no bucket"),
        ({"uri": "file://host/a.mp4"}, "no file of this machine"),
        ([], "an object"),
    ],
)
def test_a_broken_row_is_an_error_that_names_it(tmp_path, row, complaint):
    text = '{"uri": "fine.mp4"}\n\n' + json.dumps(row) + "\n"
    with pytest.raises(UserError, match=r"m\.jsonl, line 3: .*" + complaint) as caught:
        manifest(tmp_path, "m.jsonl", text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("m.csv", "path,text\na,b\n", r"no column 'uri' \(it has: path, text\)"),
        ("m.csv", "", "no column 'uri'"),
        ("m.csv", "uri,k,k\na,b,c\n", "'k' is there twice"),
        ("m.csv", "uri,k\na.mp4\n", "line 2: 1 cells, the header has 2"),
        ("m.csv", 'uri\n"a.mp4\n', "line 2"),
        ("m.csv", "uri\n", "names no source"),
        ("m.jsonl", "{\n", "line 1: no JSON"),
        ("m.jsonl", "[" * 100_000, "line 1: no JSON"),
        ("m.parquet", "PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_a_broken_manifest_is_an_error_that_names_it(tmp_path, name, content, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        manifest(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)


def test_a_row_of_parquet_is_named_by_its_number(tmp_path):
    pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4"], "start": [0.0, -2.0]}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet, row 2: 'start'"):
        list_sources(tmp_path / "m.parquet")


def test_labels_are_what_json_can_hold(tmp_path):
    import datetime

    row = {"uri": "a.mp4", "day": datetime.date(2026, 1, 2), "x": math.nan, "ok": True, "n": 2**40}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "m.parquet")
    (source,) = list_sources(tmp_path / "m.parquet").sources
    assert source.labels == {"day": "2026-01-02", "ok": True, "n": 2**40}


def test_signatures_in_urls_are_not_shown(tmp_path):
    path = tmp_path / "m.csv"
    url = "https://me:pw@host/a.mp4?id=1&X-Amz-Signature=abc&X-Amz-Date=1"
    path.write_text(f"uri\n{url}\n")
    (source,) = list_sources(path, Inputs(allow_https=True)).sources
    assert source.uri == "https://host/a.mp4?id=1&X-Amz-Signature=***&X-Amz-Date=***"
    assert source.path == url


def test_a_recipe_holds_no_credentials():
    with pytest.raises(ValueError, match="'secret' is a credential"):
        Inputs(storage_options={"client_kwargs": {"secret": "x"}})
