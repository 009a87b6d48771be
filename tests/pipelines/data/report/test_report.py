"""The page as a whole: what a reader finds on it, and that nothing in the ledger can break it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import pipelines.data.report
from kineograph.store.schema import Reason
from pipelines.data.report import losses
from pipelines.data.report.words import MEANING

VOID = {"meta", "img", "br", "wbr"}
LARGEST_PAGE = 3_000_000


class Page(HTMLParser):
    """Elements, attributes and text of a page; raises AssertionError when elements do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def test_every_reason_has_its_sentence():
    assert set(MEANING) == set(Reason)
    assert all(re.fullmatch(r"[A-Z].+\.", meaning.text) for meaning in MEANING.values())


def test_every_reason_is_on_the_page_with_its_sentence(page):
    text = Page(page).text
    assert [reason.value for reason in Reason if reason.value not in text] == []
    assert [reason.value for reason in Reason if MEANING[reason].text not in text] == []


def test_the_page_runs_nothing_and_fetches_nothing(page):
    parsed = Page(page)
    assert not parsed.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert [name for name, _ in parsed.attributes if name.startswith("on")] == []
    sources = {value.split(",")[0] for name, value in parsed.attributes if name in ("src", "href")}
    assert {source for source in sources if not source.startswith("#")} == {"data:image/jpeg;base64"}
    assert "url(" not in page
    assert "@import" not in page


def test_a_hostile_caption_and_file_name_are_shown_as_they_are(page, ledger):
    parsed = Page(page)
    assert "b" in parsed.tags  # the page's own
    assert parsed.text.count(ledger.hostile) >= 2
    assert "<b>bold</b>" not in page


def test_half_a_surrogate_pair_in_a_name_does_not_stop_the_report(page_of, source, clip):
    assert "videos/\\udce4.mp4" in page_of([source], [clip(uri="videos/\udce4.mp4", caption="x")])


def test_texts_of_any_length_make_no_long_page(page_of, source, clip):
    rows = [clip(i, caption="word " * 50_000, caption_source="sidecar", uri="u" * 100_000) for i in range(20)]
    assert len(page_of([{**source, "detail": "d" * 1_000_000}], rows)) < 200_000


def test_large_thumbnails_make_no_large_page(ledger, page_of):
    heavy = ledger.jpeg(1).ljust(100_000, b"\0")
    page = page_of(ledger.sources, ledger.clips, thumbnails=lambda rows: [heavy for _ in rows])
    assert 10 <= page.count("data:image/jpeg") <= 20
    assert len(page) < LARGEST_PAGE


def test_a_hundred_thousand_clips_make_no_larger_page_than_some_thousand(ledger, page, page_of):
    many = [{**clip, "clip_id": f"{i}-{clip['clip_id']}"} for i in range(20) for clip in ledger.clips]
    assert len(many) > 100_000
    size, size_of_some = len(page_of(ledger.sources, many, **ledger.more)), len(page)
    assert size < 1.2 * size_of_some


def test_thumbnails_are_asked_for_once_for_the_rows_that_are_shown(ledger, page_of):
    asked = []

    def thumbnails(rows):
        asked.append(rows)
        return [ledger.jpeg(0) for _ in rows]

    page_of(ledger.sources, ledger.clips, thumbnails=thumbnails)
    assert len(asked) == 1
    assert len({row["clip_id"] for row in asked[0]}) == len(asked[0]) < 400


def test_thumbnails_in_the_rows_are_used(page_of, source, clip, ledger):
    assert page_of([source], [clip(thumbnail=ledger.jpeg(0))]).count("data:image/jpeg") == 1
    assert "no picture" in page_of([source], [clip()])


def test_the_same_rows_give_the_same_page(ledger, page, page_of):
    first, second = (page_of(ledger.sources, ledger.clips, **ledger.more) for _ in range(2))
    assert first == second


def test_a_run_that_kept_nothing_says_so(page_of, source):
    text = Page(
        page_of([{**source, "status": "rejected", "reason": "corrupt", "detail": "moov atom not found"}], [])
    ).text
    assert "Nothing was kept." in text
    assert "moov atom not found" in text


def test_many_copies_do_not_hide_a_broken_file(page_of, source):
    copy = {**source, "status": "rejected", "reason": "exact_duplicate", "duplicate_of": "s0"}
    broken = {**source, "status": "rejected", "reason": "corrupt", "detail": "moov atom not found"}
    assert "moov atom not found" in page_of([source, *[copy] * 200, broken], [])


def test_a_run_without_any_source_has_a_page(page_of):
    assert "Of 0 sources" in Page(page_of([], [])).text


def test_images_alone_have_a_page_without_seconds(page_of, source, clip):
    still = clip(media_type="image", start_s=0.0, end_s=0.0, fps=0.0)
    text = Page(page_of([source], [{**still, "used_s": 0.0, "bucket": "256x256x1"}])).text
    assert "256x256x1" in text
    assert "still image" in text
    assert "Duration" not in text
    assert "Frame rate" not in text


def test_tables_have_headers_and_charts_have_words(page):
    assert page.count("<table") == page.count("<thead>") + page.count("<details>")
    assert '<th scope="col">' in page
    assert '<th scope="row">' in page
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(charts) == 19
    for chart in map(ElementTree.fromstring, charts):
        assert chart.get("role") == "img"
        assert chart.find("title").text
        assert len(chart.find("desc").text) > 40


def test_no_label_of_a_chart_begins_outside_it(page):
    for chart in map(ElementTree.fromstring, re.findall(r"<svg.*?</svg>", page, re.S)):
        _, _, width, height = map(float, chart.get("viewBox").split())
        for label in chart.iter("text"):
            assert 0 <= float(label.get("x")) <= width
            assert 8 <= float(label.get("y")) <= height


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_what_they_lie_on(theme):
    """WCAG 2: 4.5 for text, 3 for graphics."""
    style = (Path(pipelines.data.report.__file__).parent / "style.css").read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.S)[theme]
    colour = {name: int(digits, 16) for name, digits in re.findall(r"--(\w+): #(\w{6})", block)}
    for ground in ("card", "ground"):
        for name, least in {
            "ink": 7,
            "soft": 4.5,
            "limit": 4.5,
            "bucket": 4.5,
            "kept": 3,
            "rejected": 3,
            "unused": 3,
        }.items():
            assert contrast(colour[name], colour[ground]) >= least, (name, ground)
    assert contrast(colour["rejected"], colour["card"]) >= 4  # large or bold text


def contrast(a, b):
    darker, lighter = sorted(map(luminance, (a, b)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(rgb):
    parts = [(rgb >> shift & 255) / 255 for shift in (16, 8, 0)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_losses_say_on_one_line_why_nothing_is_left():
    totals = {
        "sources": 5,
        "sources_rejected": {"corrupt": 1, "not_media": 2},
        "clips": 1,
        "clips_rejected": {"black": 1},
    }
    assert losses(totals) == "5 sources, 3 rejected (2 not_media, 1 corrupt); 1 clip, 1 rejected (1 black)"
