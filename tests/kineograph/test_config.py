import pytest
from pydantic import Field

from kineograph.config import Config, digest, dump_yaml, find_recipe, load_recipe, parse_config
from kineograph.errors import RecipeError


class Part(Config):
    minimum: float | None = None
    names: tuple[str, ...] = ()


class Recipe(Config):
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    count: int = Field(1, ge=1)
    must: str


def message(raw, *overrides):
    with pytest.raises(RecipeError) as caught:
        parse_config(raw, Recipe, overrides, name="r.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"must": "x", "cuont": 3}, "r.yaml: unknown key 'cuont'; did you mean 'count'?"),
        ({"must": "x", "part": {"minimun": 1}}, "unknown key 'part.minimun'; did you mean 'part.minimum'?"),
        ({"must": "x", "zzzzz": 1}, "known here: part, parts, count, must"),
        ({}, "missing key 'must'"),
        ({"must": "x", "count": 0}, "'count': input should be greater than or equal to 1 (given: 0)"),
        ({"must": "x", "count": 0, "part": {"a": 1, "b": 2}}, "(and 2 more)"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_nearest_right_one(raw, expected):
    assert expected in message(raw)


def test_overrides_are_yaml_and_reach_into_lists():
    raw = {"must": "x", "parts": [{"minimum": 1}]}
    overrides = ["part.minimum=2.5", "parts.0.minimum=null", "part.names=[a, b]", "must=a=b"]
    config = parse_config(raw, Recipe, overrides)
    assert config.part == Part(minimum=2.5, names=("a", "b"))
    assert config.parts == (Part(),)
    assert config.must == "a=b"
    assert raw["parts"] == [{"minimum": 1}]


@pytest.mark.parametrize("override", ["count", "=3", "count.deep=3", "parts.7.minimum=1", "part.names=[a"])
def test_an_override_that_makes_no_sense_says_so(override):
    assert override in message({"must": "x", "count": 1, "parts": [{}]}, override)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe(must="x").count = 3


def test_a_recipe_survives_its_file(tmp_path):
    config = Recipe(must="ü", part=Part(minimum=1.5, names=("a",)))
    (tmp_path / "r.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml", Recipe) == config


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_what_is_no_recipe_is_refused_with_its_name(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml", Recipe)


def test_recipes_are_found_by_path_and_by_name(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.yaml").write_text("must: x")
    assert find_recipe("demo", tmp_path) == tmp_path / "recipes" / "demo.yaml"
    assert find_recipe(tmp_path / "recipes" / "demo.yaml", tmp_path).is_file()
    with pytest.raises(RecipeError, match="one of: demo"):
        find_recipe("dmeo", tmp_path)


def test_digests_depend_on_values_and_not_on_their_order():
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
    assert digest(Recipe(must="x")) != digest(Recipe(must="y"))
