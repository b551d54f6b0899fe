"""From words on a command line to a typed dataclass, with one sentence for each way that this can go wrong.

tyro reads the dataclass: fields become options, their docs the help, nested dataclasses dotted options.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated, Any, TypeVar

from maquette.commands.components import Choice, choose_components, find_choices
from maquette.errors import UserError

T = TypeVar("T")
FLAT = "config"
"""A command's options keep the method's config in a field of this name, whose own fields need no prefix."""


def parse(kind: type[T], arguments: Sequence[str], command: str, *, about: str = "") -> T:
    """`arguments` as a `kind`; fields that are not given keep their defaults.

    A field called `config` holds a method's config: its fields are options without a prefix, and its components can be
    chosen by name (see `components`). `--help` prints the help and raises SystemExit(0). Raises UserError, one sentence
    naming the option, for anything that does not fit; an unknown option is answered with the nearest one.
    """
    import tyro

    kind, words, choices = _with_components(kind, list(arguments))

    def read() -> T:
        markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
        return tyro.cli(kind, prog=command, description=about, args=words, config=markers)

    if any(word in ("-h", "--help") for word in words):
        try:
            return read()
        except SystemExit:
            if choices:
                print("\n".join(["components, by name:", *(f"  {choice}" for choice in choices)]))
            raise
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), _wide():
            found = read()
    except SystemExit as stop:
        known = [*option_names(kind), *(choice.option for choice in choices)]
        raise UserError(_sentence(said.getvalue(), known, command)) from stop
    _check_numbers(found)
    return found


def _check_numbers(values: Any, prefix: str = "") -> None:
    """UserError for what no option takes: NaN and infinities, which pass every check that compares and end a run in
    the middle, and seeds that not every generator takes.
    """
    for field in dataclasses.fields(values):
        value, name = getattr(values, field.name), f"{prefix}{as_option(field.name)}"
        if dataclasses.is_dataclass(value):
            _check_numbers(value, "" if name == FLAT else f"{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"--{name}: expected a finite number, got {number}")
        if field.name == "seed" and isinstance(value, int) and not 0 <= value < 1 << 63:
            raise UserError(f"--{name}: expected a whole number from 0 to 2^63 - 1, got {value}")


def _with_components(kind: type[T], words: list[str]) -> tuple[type[T], list[str], list[Choice]]:
    """`kind` with the components chosen in its config, the words that are left, and the choices that there are."""
    field = next((field for field in dataclasses.fields(kind) if field.name == FLAT), None)  # type: ignore[arg-type]
    if field is None:
        return kind, words, []
    before = _default_of(field)
    config, left = choose_components(before, words)
    if config is not before:
        from tyro.conf import arg

        flat = (FLAT, Annotated[type(config), arg(name="")], config)
        kind = dataclasses.make_dataclass(kind.__name__, [flat], bases=(kind,), frozen=True)
    return kind, left, list(find_choices(config))


def choose(choices: Mapping[str, tuple[Callable[[list[str]], int], str]], arguments: list[str], command: str) -> int:
    """Run the choice that the first word names with the words after it; alone, or with --help, list the choices."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, choices))
        lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in choices.items()]
        print("\n".join([f"usage: {command} WHAT [OPTIONS]", "", *lines, "", f"`{command} WHAT --help` says more."]))
        return 0
    name = arguments[0]
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(choices)}."
        raise UserError(f"`{command}` has no {name!r}; {hint}")
    return choices[name][0](arguments[1:])


def option_names(kind: Any, default: Any = None, prefix: str = "") -> Iterator[str]:
    """The long options that stand for the fields of a dataclass and of the dataclasses inside it."""
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name, None) if default is not None else _default_of(field)
        name = f"{prefix}{as_option(field.name)}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from option_names(type(value), value, "" if name == FLAT else f"{name}.")
        elif value is True:
            yield f"--{prefix}no-{as_option(field.name)}"
        else:
            yield f"--{name}"


def as_option(field: str) -> str:
    """A field's name as it is typed: dashes, but for the underscore that tells a word from one of Python's own.

    >>> as_option("guidance_scale"), as_option("lambda_")
    ('guidance-scale', 'lambda_')
    """
    return field.rstrip("_").replace("_", "-") + "_" * (len(field) - len(field.rstrip("_")))


def _default_of(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


@contextmanager
def _wide() -> Iterator[None]:
    """Let tyro write each message on one line, however narrow the terminal is."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _sentence(text: str, known: list[str], command: str) -> str:
    """The first paragraph of tyro's framed error message, as one sentence of ours."""
    bare = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", text)
    lines = [line.strip() for line in bare.splitlines()]
    parts = re.split(r"\n[─-]{10,}\n", "\n".join(lines[1:]).lstrip("─-\n"))  # the first line is the frame's title
    said = " ".join(parts[0].split())
    if said.startswith("Unrecognized"):
        return _unknown(said.partition(":")[2].strip(), known, command)
    if said.startswith("Missing from"):
        missing = said.partition(":")[2].split()
        return f"{missing[0] if missing else 'an argument'} is missing; `{command} --help` says what it is."
    said = re.sub(r"^Error parsing (--\S+): ", r"\1: ", said)
    said = re.sub(r"^Error parsing \S+: ", "", said)
    said = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"expected a whole number, got \1", said)
    said = re.sub(r"could not convert string to float: ('.*')", r"expected a number, got \1", said)
    union = re.fullmatch(r"(--\S+): no type matching \S+ could be instantiated from \['?(.*?)'?\]\. .*", said)
    said = f"{union[1]}: expected {_expected(said)}, got {union[2]!r}" if union else said
    choice = re.fullmatch(r"invalid choice (.*) for argument '(.*)'. Expected one of \((.*)\)\.", said)
    said = f"{choice[2]}: expected one of {choice[3]}, got {choice[1]}" if choice else said
    said = re.sub(r"^Missing value for argument '(.*)'. Expected (\d+) values?.$", r"\1: a value is missing", said)
    return said or f"the options cannot be read; see `{command} --help`."


def _expected(said: str) -> str:
    """What would have been right for an option of several types, from what tyro says of each."""
    kinds = {"class 'int'": "a whole number", "class 'float'": "a number", "class 'str'": "a word"}
    wanted = [word for kind, word in kinds.items() if kind in said]
    return " or ".join([*wanted, *(["None"] if "NoneType" in said else [])])


def _unknown(listed: str, known: list[str], command: str) -> str:
    words = [word.strip() for word in listed.split(",")]
    name = next((word for word in words if word.startswith("--")), None)
    if name is None:
        bare = words[0].partition("=")[0].replace("_", "-")
        hint = f"options begin with two dashes, as --{bare}" if f"--{bare}" in known else f"see `{command} --help`."
        return f"unexpected argument {words[0]!r}; {hint}"
    name = name.split("=")[0].replace("_", "-")
    if name.lower() in known:
        return f"there is no option {name}; did you mean {name.lower()}?"
    same_end = [option for option in known if option.split(".")[-1] == name.lstrip("-").split(".")[-1]]
    near = difflib.get_close_matches(name, same_end or known, n=1, cutoff=0.0 if same_end else 0.65)
    hint = f"did you mean {near[0]}?" if near else f"`{command} --help` lists them all."
    return f"there is no option {name}; {hint}"
