"""Recipes: YAML and ``--set`` overrides become frozen, typed configs; an unknown key is an error.

Each component owns its config model, a subclass of :class:`Config` beside its code. A field's docstring line gives its
meaning and unit.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kineograph.errors import RecipeError


class Config(BaseModel):
    """Base of every config model: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def digest(value: Any) -> str:
    """SHA-256 (hex) of ``value`` as canonical JSON; a Config counts as its dumped fields."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def find_recipe(recipe: str | Path, package_dir: Path) -> Path:
    """The file that ``recipe`` names: a path, or the name of a recipe that ships in ``package_dir``/recipes.

    Raises RecipeError when there is neither, with the names that ship.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = package_dir / "recipes" / f"{recipe}.yaml"
    if path.suffix not in (".yaml", ".yml") and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in (package_dir / "recipes").glob("*.yaml")))
    raise RecipeError(f"no recipe {str(recipe)!r}: give a YAML file, or one of: {names}")


def load_recipe(path: str | Path, model: type[C], overrides: Iterable[str] = ()) -> C:
    """Read ``path`` and apply ``a.b.c=value`` overrides (values are YAML).

    Raises RecipeError with the file, the key and the nearest right key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not valid YAML: {reason}") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, this is a {type(raw).__name__}")
    return parse_config(raw, model, overrides, name=path.name)


def parse_config(raw: Mapping[str, Any], model: type[C], overrides: Iterable[str] = (), name: str = "recipe") -> C:
    """Validate ``raw`` with ``overrides`` applied as ``model``; ``name`` stands before every complaint."""
    merged = json.loads(json.dumps(raw, default=str))
    for override in overrides:
        _apply_override(merged, override)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"{name}: {_explain(error, model)}") from error


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r}: write it as key=value, e.g. --set filters.motion.min=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML") from error
    node: Any = raw
    *parents, last = key.strip().split(".")
    for part in parents:
        child = _step(node, part, override)
        if child is None:
            child = node[part] = {}
        node = child
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {override!r}: {'.'.join(parents)} is a single value and has no keys")


def _step(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if isinstance(node, dict):
        return node.get(part)
    raise RecipeError(f"--set {override!r}: there is nothing below {part!r}")


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(f"--set {override!r}: {part!r} is no position in a list of {len(node)}")
    return int(part)


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint of ``error`` as one line, and how many there are besides."""
    errors = error.errors()
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    key = _dotted(first["loc"], model)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        if key in known_keys(model):  # of another member of a union
            return f"the key {key!r} does not go with the other keys of {key.rpartition('.')[0]!r}{more}"
        nearest = difflib.get_close_matches(key, list(known_keys(model)), n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known here: {_siblings(key, model)}"
        return f"unknown key {key!r}{hint}{more}"
    if first["type"] == "missing":
        return f"missing key {key!r}{more}"
    if first["type"] == "union_tag_invalid":
        return f"{key + '.kind'!r}: should be one of {first['ctx']['expected_tags']} (given: {first['ctx']['tag']!r}){more}"
    message = first["msg"].removeprefix("Value error, ")
    where = f"{key!r}: " if key else ""
    given = f" (given: {first['input']!r})" if key and not isinstance(first["input"], dict) else ""
    return f"{where}{message[0].lower()}{message[1:]}{given}{more}"


def _dotted(loc: Iterable[int | str], model: type[BaseModel]) -> str:
    """The key at ``loc`` as it is written: pydantic puts the tag of a union's member into it too."""
    parts: list[str] = []
    models: list[type[BaseModel]] = [model]
    for part in loc:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [nested for field in fields for nested in _models_in(field.annotation)]
        elif part in _tags(models):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _tags(models: Iterable[type[BaseModel]]) -> set[Any]:
    """What tells the members of a union apart: the values that their field ``kind`` may have."""
    fields = [m.model_fields["kind"] for m in models if "kind" in m.model_fields]
    return {value for field in fields for value in typing.get_args(field.annotation)}


def _siblings(key: str, model: type[BaseModel]) -> str:
    parent = key.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    names = [k for k in known_keys(model) if k.startswith(prefix) and "." not in k.removeprefix(prefix)]
    return ", ".join(names)


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key that ``model`` accepts, parents before children."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for nested in _models_in(field.annotation):
            yield from known_keys(nested, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
