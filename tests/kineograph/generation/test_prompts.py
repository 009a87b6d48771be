"""Files of prompts, and the names of the videos."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.generation.prompts import MAX_SLUG, PromptRow, read_prompts, slug, takes

ROWS = [
    PromptRow(prompt="a red circle"),
    PromptRow(prompt="two\nlines, and a comma", seed=7, negative_prompt="blur", out="mine"),
]


def written(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def test_a_text_file_has_a_prompt_per_line(tmp_path):
    path = written(tmp_path, "p.txt", "# what to show\n\na red circle\n  a cat #1  \n")
    assert [row.prompt for row in read_prompts(path)] == ["a red circle", "a cat #1"]


def test_json_lines_and_csv_say_the_same(tmp_path):
    lines = "\n".join(row.model_dump_json(exclude_none=True) for row in ROWS)
    table = 'prompt,seed,negative_prompt,out\r\na red circle,,,\r\n"two\nlines, and a comma",7,blur,mine\r\n'
    assert read_prompts(written(tmp_path, "p.jsonl", lines + "\n\n")) == ROWS
    assert read_prompts(written(tmp_path, "p.csv", "\ufeff" + table)) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.xml", "", r"\.txt, \.jsonl or \.csv"),
        ("p.txt", "# nothing\n", "no prompt"),
        ("p.txt", b"\xff\xfe", "not UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n[]', "line 2"),
        ("p.jsonl", '{"promt": "a"}', "line 1.*did you mean 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "seed": "x"}', "line 1.*seed"),
        ("p.jsonl", '{"prompt": "a", "out": "../a"}', "line 1.*out"),
        ("p.csv", "seed\n1\n", "line 2.*prompt"),
        ("p.csv", "prompt\na,b\n", "line 2.*more cells"),
    ],
)
def test_a_wrong_file_is_told_by_its_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(written(tmp_path, name, text))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt")


def test_each_prompt_has_a_video_per_seed_and_its_own_seeds_first():
    found = takes(ROWS, range(2))
    assert [(take.seed, take.name) for take in found] == [
        (0, "000-a-red-circle-0.mp4"),
        (1, "000-a-red-circle-1.mp4"),
        (7, "mine-7.mp4"),
        (8, "mine-8.mp4"),
    ]
    assert [take.name for take in takes(ROWS, [5])] == ["000-a-red-circle-5.mp4", "mine.mp4"]


def test_two_videos_of_one_name_are_a_users_error():
    with pytest.raises(UserError, match=r"mine\.mp4"):
        takes([ROWS[1], ROWS[1]], [0])
    with pytest.raises(UserError, match="000-a-red-circle-3"):
        takes(ROWS[:1], [3, 3])


@given(st.text())
def test_any_prompt_gives_a_plain_name(prompt):
    found = slug(prompt)
    assert 0 < len(found) <= MAX_SLUG
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
