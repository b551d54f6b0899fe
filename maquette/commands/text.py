"""`maquette text`: a sentence to a textured 3D object."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from maquette.asset import ExportFormat
from maquette.commands.arguments import parse
from maquette.commands.imagedream import PARALLEL
from maquette.commands.method import (
    QUALITIES,
    Method,
    make_in_folder,
    method_options,
    print_cost,
    slug,
    with_steps,
    word_after,
)
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.methods.text import Config, configure, text_to_3d
from maquette.priors.nano.vocabulary import split_words, unknown_words
from maquette.priors.placement import Precision
from maquette.run.memory import GIB

PRESETS = ("nano", "paper", "dreamfusion", "usd")
LONGEST = 40
"""Characters of the words that become the folder's name."""


@dataclass(frozen=True)
class Options:
    """Options of the command; the method's own config is beside them."""

    text: Annotated[Positional[str], arg(metavar="TEXT")]
    """What the object is, in quotes: "a wooden barrel"."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where everything goes; default: runs/text-WORDS."""
    preset: Literal["nano", "paper", "dreamfusion", "usd"] | None = None
    """nano: the embedded prior, made for a CPU; paper: the recipe of the prior's own paper (MVDream's, or DreamFusion's
    for priors of single images); usd: USD's three stages, with --prior nano on a CPU. Default: nano for the prior nano,
    else paper."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time to spend."""
    seed: int = 0
    """Same seed, same machine: the same bytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Of published priors; auto: float16 on a GPU, float32 on a CPU."""
    low_memory: bool = False
    """Published priors in less memory on a GPU, with slower steps."""
    compile: bool = False
    """Compile the U-Nets of published priors: minutes at the first step, faster ones afterwards."""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """Steps of each field fit; schedules are fractions of it."""
    export: tuple[ExportFormat, ...] = ()
    """Write the object in these formats too, beside asset.glb; a finished run is not made again for it."""
    overwrite: bool = False
    """Replace a run with other settings in that folder."""
    estimate: bool = False
    """Print the time and memory that these settings take, as far as measured, and stop; TEXT may be left out."""


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes, as for `maquette imagedream`; zeros for priors of unknown cost.

    A step of the surface takes 0.055 processor seconds, one of the texture about 0.4.
    """
    if config.prior != "nano":
        return 0.0, 0
    processor = 0.46 * config.fit.steps + 30.0
    processor += 0.10 * config.first_views.sampling.evaluations if config.first_views else 0.0
    processor += 0.085 * config.warm_start.fit.steps if config.warm_start else 0.0
    processor += 0.055 * config.geometry.recovery.fit.steps if config.geometry else 0.0
    processor += 0.4 * config.texture.fit.steps + 10.0 if config.texture else 0.0
    return processor / PARALLEL, round(1.5 * GIB)


METHOD = Method("text", "A sentence to a textured 3D object, by score distillation.", configure, text_to_3d, estimate)


def run(arguments: list[str]) -> int:
    """Make the object."""
    if "--estimate" in arguments:
        return _estimate(arguments)
    options, config = read_options(arguments)
    words = " ".join(options.text.split())
    if not words:
        raise UserError('TEXT is empty: say what the object is, as in "a wooden barrel"')
    if config.prior == "nano":
        check_vocabulary(words)
    out = options.out or Path("runs") / f"text-{slug(words[:LONGEST])}"
    inputs: dict[str, Any] = {"caption": words, "quality": options.quality}
    if options.preset is not None:
        inputs["preset"] = options.preset
    return make_in_folder(METHOD, Prompt(None, caption=words), config, out, inputs, options, arguments)


def read_options(arguments: list[str]) -> tuple[Options, Config]:
    """The options, and the config of the recipe that `--preset` and `--prior` choose together."""
    prior = value_of(arguments, "--prior")
    preset = word_after(arguments, "--preset", PRESETS, "paper" if prior not in (None, "nano") else "nano")
    start = configure(preset, word_after(arguments, "--quality", QUALITIES, "default"), prior)
    options: Any = parse(method_options(Options, start), arguments, "maquette text", about=METHOD.about)
    config = options.config
    if options.steps is not None:
        if options.steps < 1:
            raise UserError(f"--steps: expected a whole number of at least 1, got {options.steps}")
        config = with_steps(config, options.steps)
    return options, config


def _estimate(arguments: list[str]) -> int:
    try:
        options, config = read_options(arguments)
    except UserError as error:
        if not str(error).startswith("TEXT is missing"):
            raise
        options, config = read_options([*arguments, "TEXT"])
    print_cost(METHOD, config, options)
    return 0


def value_of(arguments: list[str], name: str) -> str | None:
    """The last value given to an option, read before the rest."""
    found = None
    for word, after in zip(arguments, [*arguments[1:], ""], strict=False):
        if word == name:
            found = after
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found or None


def check_vocabulary(text: str) -> None:
    """Say which words the embedded prior cannot read. UserError where it can read none."""
    unknown, words = unknown_words(text), split_words(text)
    known = [word for word in words if word not in unknown and not re.fullmatch(r"an?|the|of|with|and", word)]
    if not known:
        raise UserError(
            f"the nano prior knows none of the words in {text!r}; it reads plain English names of objects, colours and "
            'materials, as in "a wooden barrel"'
        )
    if unknown:
        print(f"note: the nano prior does not know {', '.join(dict.fromkeys(unknown))}", file=sys.stderr)
