"""Labels of clips: what a manifest or a synthetic caption says, and nothing guessed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.config import parse_config
from kineograph.errors import RecipeError, UserError
from kineograph.store.labels import LabelSource, labels_of


def rows_of(*captions):
    return [{"caption": caption, "labels": ""} for caption in captions]


CAPTIONS = rows_of(
    "a red circle moving left quickly",
    "a blue square",
    "people ride bikes",
    "a red circle moving left and a blue square moving left",
    "",
)


@pytest.mark.parametrize(
    ("truth", "names", "ids"),
    [
        ("shape", ("circle", "square"), (0, 1, None, None, None)),
        ("colour", ("blue", "red"), (1, 0, None, None, None)),
    ],
)
def test_the_truth_of_the_synthetic_world_is_read_from_captions(truth, names, ids):
    labels = labels_of(CAPTIONS, LabelSource(truth=truth))
    assert (labels.names, labels.ids, labels.unlabelled) == (names, ids, 3)


def test_what_stands_still_has_no_direction_and_two_that_move_alike_have_one():
    labels = labels_of([*CAPTIONS, *rows_of("a cyan triangle moving up slowly")], LabelSource(truth="direction"))
    assert labels.names == ("left", "up")
    assert labels.ids == (0, None, None, 0, None, 1)


def test_speed_is_a_label_where_the_caption_tells_it():
    rows = rows_of("a red circle moving left quickly", "a red circle moving left", "a red circle moving up slowly")
    assert labels_of(rows, LabelSource(truth="speed")).ids == (0, None, 1)


def in_column(*values):
    return [{"caption": "", "labels": json.dumps({"category": value, "other": 1})} for value in values]


def test_a_column_of_the_manifest_gives_labels():
    rows = [*in_column("dog", "cat", " dog ", "", None), {"caption": "", "labels": ""}, {"caption": "", "labels": None}]
    labels = labels_of(rows, LabelSource(column="category"))
    assert (labels.names, labels.ids, labels.unlabelled) == (("cat", "dog"), (1, 0, 1, None, None, None, None), 4)


def test_numbers_are_names_too():
    assert labels_of(in_column(3, 1.5, True), LabelSource(column="category")).names == ("1.5", "3", "True")


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=2), seed=st.randoms())
def test_names_do_not_depend_on_the_order_of_the_rows(values, seed):
    values = ["a", "b", *values]
    shuffled = seed.sample(values, len(values))
    first, second = (labels_of(in_column(*v), LabelSource(column="category")) for v in (values, shuffled))
    assert first.names == second.names
    assert [None if i is None else first.names[i] for i in first.ids] == values


def test_a_column_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(UserError, match=r"none of 2 clips has a label in column 'kind'.*: category, other$"):
        labels_of(in_column("a", "b"), LabelSource(column="kind"))


def test_one_class_is_nothing_to_learn():
    with pytest.raises(UserError, match="all labelled clips are 'a'"):
        labels_of(in_column("a", "a", None), LabelSource(column="category"))
    with pytest.raises(UserError, match="kineo data synth"):
        labels_of(rows_of("a dog"), LabelSource(truth="shape"))


def test_several_classes_of_one_clip_are_refused():
    with pytest.raises(UserError, match="one class only"):
        labels_of(in_column(["a", "b"]), LabelSource(column="category"))


@pytest.mark.parametrize("raw", [{}, {"column": "a", "truth": "shape"}])
def test_a_label_has_one_source(raw):
    with pytest.raises(RecipeError, match="give either column or truth"):
        parse_config(raw, LabelSource)
