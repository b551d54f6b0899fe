"""Choosing between the components of a config by name: `--scene.encoding hash-grid`, `--warm-start none`.

A field whose type is a union of dataclasses (or one dataclass or None) is a choice. Its option names the class, in
lower case with dashes and without a trailing "Config"; the options of that class's fields then follow as usual.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from maquette.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A field of a config that takes one of several classes."""

    path: tuple[str, ...]
    """Field names from the config down."""
    classes: dict[str, type[Any] | None]
    """Name on the command line -> class; None switches the component off."""
    chosen: str
    """The name of what is there now."""

    @property
    def option(self) -> str:
        """As it is typed."""
        return "--" + ".".join(self.path).replace("_", "-")

    def __str__(self) -> str:
        return f"{self.option} {{{','.join(self.classes)}}}  (default: {self.chosen})"


def choose_components(config: Any, words: list[str]) -> tuple[Any, list[str]]:
    """`config` with the components that `words` name, and the words that are left. UserError for an unknown name."""
    left: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        choice = next((choice for choice in find_choices(config) if choice.option == name.replace("_", "-")), None)
        if choice is None:
            left.append(word)
            continue
        if not equals:
            if not queue:
                raise UserError(f"{choice.option}: a value is missing; it takes {', '.join(choice.classes)}")
            value = queue.pop(0)
        config = _replaced(config, choice, value)
    return config, left


def find_choices(config: Any, path: tuple[str, ...] = ()) -> Iterator[Choice]:
    """All choices in a config, outer ones first."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), (*path, field.name)
        members = _members(hints[field.name])
        if len(members) > 1 and all(m is type(None) or dataclasses.is_dataclass(m) for m in members):
            classes = {_name(member): None if member is type(None) else member for member in members}
            yield Choice(here, classes, _name(type(value)))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from find_choices(value, here)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _name(kind: type[Any]) -> str:
    """`HashGridConfig` -> "hash-grid", NoneType -> "none"."""
    if kind is type(None):
        return "none"
    bare = kind.__name__.removesuffix("Config")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", bare).lower()


def _replaced(config: Any, choice: Choice, value: str) -> Any:
    if value not in choice.classes:
        near = difflib.get_close_matches(value, choice.classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{choice.option}: expected one of {', '.join(choice.classes)}, got {value!r}{hint}")
    if value == choice.chosen:
        return config
    kind = choice.classes[value]
    try:
        component = None if kind is None else kind()
    except TypeError as error:
        raise UserError(f"{choice.option} {value}: has settings without defaults; choose it from Python") from error
    for depth in range(len(choice.path) - 1, -1, -1):
        holder = config
        for name in choice.path[:depth]:
            holder = getattr(holder, name)
        component = dataclasses.replace(holder, **{choice.path[depth]: component})
    return component
