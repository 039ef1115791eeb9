"""Recipes by name or file: a training run in one YAML file.

A recipe is a packaged name (``digits-resnet8``) or a path to a file. It may start from another
one with ``extends:``; any key may be overridden with ``training.epochs=5``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from reskit.config import Recipe
from reskit.errors import ConfigError, UnknownNameError, did_you_mean

__all__ = ["list_recipes", "load_recipe"]


def list_recipes() -> list[str]:
    """Return the names of the packaged recipes."""
    folder = resources.files("reskit.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(name: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check every key.

    Args:
        name: a packaged name, a path to a YAML file, or a mapping. A file may name what it extends by a path
            relative to itself.
        overrides: ``key.path=value`` each, the value in YAML.

    Raises:
        UnknownNameError: no packaged recipe has the name and no file is there.
        ConfigError: not YAML, an unknown key (with a suggestion), or a value out of its range.
    """
    if isinstance(name, Mapping):
        values, label = _extended(name, Path(), ()), "recipe"
    else:
        values, label = _read(str(name), Path(), ()), f"recipe {str(name)!r}"
    for override in overrides:
        values = _merge(values, _parse_override(override))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{label}: {_explain(error)}") from None


def _read(name: str, folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    """Read one YAML mapping from a file or the packaged recipes, laid on what it extends.

    Args:
        name: a path, relative to `folder`, or a packaged name.
        folder: where it is named.
        above: the recipes that extend it.
    """
    path = folder / name
    try:
        if path.suffix in {".yaml", ".yml"} or path.is_file():
            text = path.read_text(encoding="utf-8")
            name, folder = str(path.resolve()), path.parent
        elif name in list_recipes():
            text = (resources.files("reskit.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        else:
            raise UnknownNameError("recipe", name, list_recipes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe file {name!r} cannot be read: {error}") from None
    values = load_yaml(text, f"recipe {name!r}")
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {name!r} must be a mapping of keys, not {type(values).__name__}")
    if name in above:
        raise ConfigError(f"recipe {above[0]!r}: `extends` goes round in a circle at {name!r}")
    return _extended(values, folder, (*above, name))


def _extended(values: Mapping[str, Any], folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    """Return `values` laid on the recipe they extend, if any."""
    values = dict(values)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"`extends` must be the name or path of one recipe, not {base!r:.60}")
    return _merge(_read(base, folder, above), values)


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(text: str, label: str) -> Any:
    """Parse YAML; `label` says in errors what was to be parsed."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{label} is not valid YAML: {' '.join(str(error).split())}") from None


def _parse_override(text: str) -> dict[str, Any]:
    """Turn ``a.b=1`` into ``{"a": {"b": 1}}``."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"override {text!r} is not of the form key.path=value, as in training.epochs=5")
    tree = load_yaml(value, f"the value of override {text!r:.60}")
    for key in reversed(path.split(".")):
        tree = {key: tree}
    return dict(tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `over` laid on it, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"name": old}  # `task: text` says the same as `task: {name: text}`
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> str:
    """Say the first few problems in a line, with the known key nearest to an unknown one."""
    problems = []
    for item in error.errors()[:3]:
        where = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            *parents, word = map(str, item["loc"])
            problems.append(f"unknown key {where!r}{did_you_mean(word, _known_keys(parents))}")
        elif item["type"] == "missing":
            problems.append(f"{where} is missing")
        elif item["type"] == "value_error":  # of a whole part: the message names the values
            problems.append(f"{where or 'recipe'}: {item['msg'].removeprefix('Value error, ')}")
        else:
            problems.append(f"{where or 'recipe'}: {item['msg']} (got {item['input']!r:.60})")
    return "; ".join(problems)


def _known_keys(parents: Iterable[str]) -> list[str]:
    """Return the keys accepted under a path of a recipe."""
    part: type[BaseModel] = Recipe
    for key in parents:
        annotation = part.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)
