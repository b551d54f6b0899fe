"""What every method command does around its method: options, prompt, run folder, live pictures, asset, report, box."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from maquette.asset import Asset, ExportFormat
from maquette.commands.arguments import FLAT, parse
from maquette.commands.cost import describe_cost
from maquette.commands.inputs import describe_inputs, read_picture
from maquette.commands.outcome import LiveFolder, closing_box, save_object
from maquette.errors import UserError
from maquette.images import Prompt, Views, save_image
from maquette.matting import Matting
from maquette.priors.placement import Placement, Precision, loading
from maquette.run import Run
from maquette.run.files import atomic_path
from maquette.run.memory import LIBRARIES, gib
from maquette.run.progress import duration
from maquette.run.run import resolve_device

PRESETS = ("nano", "paper")
QUALITIES = ("draft", "default", "high")


@dataclass(frozen=True)
class Method:
    """A method as its command sees it."""

    name: str
    """Its word on the command line."""
    about: str
    """One sentence for `--help`."""
    config: Callable[[str, str], Any]
    """(preset, quality) -> its config, a frozen dataclass."""
    make: Callable[[Prompt, Any, Run], Asset | Views]
    """The method: from a prompt to an asset, or to pictures."""
    estimate: Callable[[Any], tuple[float, int]] = lambda config: (0.0, 0)
    """config -> (seconds on two CPU cores, peak bytes) as measured; zeros where nothing is known."""


@dataclass(frozen=True)
class Options:
    """Options that all methods share; the method's own config is beside them."""

    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """Picture of one object: PNG, JPEG or WebP, with or without a background."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where everything goes; default: runs/METHOD-IMAGE."""
    preset: Literal["nano", "paper"] = "nano"
    """nano: the embedded priors, made for a CPU; paper: the paper's own settings, for published weights and a GPU."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time to spend."""
    caption: str = ""
    """What the picture shows, in a few words."""
    negative: str = ""
    """What the result must not look like."""
    mask: Annotated[Path | None, arg(metavar="FILE")] = None
    """Picture whose bright (or opaque) part is the object; by default the object is cut out as --matting says."""
    matting: Matting = "auto"
    """How the object is cut out. auto: by transparency, else as plain or as photo; alpha: by transparency; plain: what
    a one-coloured background does not reach; photo: by colours and place; rembg: by that network (extra `matting`),
    which is fetched when it is first used."""
    elevation: Annotated[float | None, arg(metavar="DEG")] = None
    """Degrees above the horizon from which the picture was taken; estimated by default."""
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
    """Print the time and memory that these settings take, as far as measured, and stop; IMAGE may be left out."""


def run_method(method: Method, arguments: list[str]) -> int:
    """Read the options, run the method in its folder, and write everything that a run folder holds."""
    if "--estimate" in arguments:
        return print_estimate(method, arguments)
    options, config = read_options(method, arguments)
    prompt = read_picture(options.image, options.caption, options)
    out = options.out or Path("runs") / f"{method.name}-{slug(options.image.stem)}"
    return make_in_folder(method, prompt, config, out, describe_inputs(options.image, options), options, arguments)


def make_in_folder(
    method: Method,
    prompt: Prompt,
    config: Any,
    out: Path,
    inputs: dict[str, Any],
    options: Any,
    arguments: list[str],
) -> int:
    """Run a method in a folder, write its result and what is made from it, and print the closing box; exit code 0.

    `options` has `seed`, `device`, `overwrite`, and may have `export` and the settings of
    `priors.placement.Placement`; `inputs` says what goes in, and counts as a setting.
    """
    began = time.monotonic()
    kept = {name: getattr(options, name) for name in ("precision", "low_memory", "compile") if hasattr(options, name)}
    placement = Placement(**kept)
    placement.dtype(resolve_device(options.device))  # refused before anything is made
    if placement.precision != "auto":
        inputs = {**inputs, "precision": placement.precision}
    with loading(placement), Run.open(
        out, config=config, seed=options.seed, device=options.device, method=method.name,
        inputs=inputs, overwrite=options.overwrite,
    ) as run:  # fmt: skip
        announce(method, config, prompt, run)
        with LiveFolder(run) as live:
            run.watch(live)
            finish(run, method.make(prompt, config, run), live, getattr(options, "export", ()))
    print(closing_box(run, method.name, arguments, time.monotonic() - began))
    return 0


def print_estimate(method: Method, arguments: list[str]) -> int:
    """Say what the settings take; nothing is loaded, and no folder is made."""
    try:
        options, config = read_options(method, arguments)
    except UserError as error:
        if not str(error).startswith("IMAGE is missing"):
            raise
        options, config = read_options(method, [*arguments, "IMAGE"])
    print_cost(method, config, options)
    return 0


def print_cost(method: Method, config: Any, options: Any) -> None:
    """Print the time and memory that a config takes, as far as measured; of `options` the device and the precision."""
    seconds, memory = method.estimate(config)
    where = resolve_device(options.device)
    if seconds and where.type == "cpu":
        print(f"time: about {duration(seconds)} on two CPU cores\nmemory: about {gib(memory + LIBRARIES)}")
    else:
        print(describe_cost(config, where, precision=getattr(options, "precision", "auto")))


def read_options(method: Method, arguments: list[str], options: type[Options] = Options) -> tuple[Options, Any]:
    """The common options and the method's config, with `--preset` and `--quality` as the config's starting point."""
    kind = method_options(options, starting_config(method, arguments))
    found: Any = parse(kind, arguments, f"maquette {method.name}", about=method.about)
    config = found.config
    if found.steps is not None:
        if found.steps < 1:
            raise UserError(f"--steps: expected a whole number of at least 1, got {found.steps}")
        config = with_steps(config, found.steps)
    return found, config


def starting_config(method: Method, arguments: list[str]) -> Any:
    """The method's config before any of its fields is overridden."""
    preset = word_after(arguments, "--preset", PRESETS, "nano")
    return method.config(preset, word_after(arguments, "--quality", QUALITIES, "default"))


def method_options(kind: type[Any], start: Any) -> type[Any]:
    """A dataclass with the options of `kind` and, as further options, every field of the config `start`."""
    flat = (FLAT, Annotated[type(start), arg(name="")], start)
    return dataclasses.make_dataclass("MethodOptions", [flat], bases=(kind,), frozen=True)


def word_after(arguments: list[str], name: str, choices: tuple[str, ...], default: str) -> str:
    """The value of an option that decides the defaults of others, read before the rest; UserError if it is none of
    `choices`.
    """
    for i, word in enumerate(arguments):
        if word == name or word.startswith(f"{name}="):
            value = word.partition("=")[2] or (arguments[i + 1] if i + 1 < len(arguments) else "")
            if value not in choices:
                near = difflib.get_close_matches(value, choices, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}{hint}")
            default = value
    return default


def with_steps(config: Any, steps: int) -> Any:
    """`config` with the number of steps of every field fit in it set to `steps`; UserError if it has none."""
    replaced, count = _with_steps(config, steps)
    if count == 0:
        raise UserError("--steps: this method fits no field, so it has no steps to set.")
    return replaced


def _with_steps(config: Any, steps: int) -> tuple[Any, int]:
    changes: dict[str, Any] = {}
    total = 0
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner, count = _with_steps(value, steps)
            if type(value).__name__ == "FitConfig":
                inner, count = dataclasses.replace(inner, steps=steps), count + 1
            if count:
                changes[field.name] = inner
                total += count
    return (dataclasses.replace(config, **changes) if changes else config), total


def slug(name: str) -> str:
    """A name as part of a folder's name: its letters and digits, of any script, no longer than file systems allow."""
    return re.sub(r"[\W_]+", "-", name.lower())[:50].strip("-") or "image"


def announce(method: Method, config: Any, prompt: Prompt, run: Run) -> None:
    """Say in one line where it goes and how long it takes, and keep the crop that the prior sees."""
    seconds, memory = method.estimate(config)
    if memory:
        run.require_memory(memory, f"`maquette {method.name}` with these settings")
    about = f", about {duration(seconds)} on two CPU cores" if seconds and run.device.type == "cpu" else ""
    print(f"{method.name} on {run.device.type} into {run.folder}{about}", file=sys.stderr)
    if prompt.cutout is not None:
        run.log(event="cutout", **dataclasses.asdict(prompt.cutout))
        for warning in prompt.cutout.warnings:
            print(f"note: {warning}", file=sys.stderr)
    if prompt.image is not None:
        with atomic_path(run.folder / "prompt.png") as temporary:
            save_image(temporary, prompt.image.rgba())


def finish(run: Run, result: Asset | Views, live: LiveFolder, formats: Sequence[ExportFormat] = ()) -> None:
    """Write the result and everything that is made from it."""
    views = result if isinstance(result, Views) else result.views
    if views is not None:
        live.keep_views(views)
    if isinstance(result, Asset):
        save_object(result, run.folder, formats)
    run.write_provenance()
    live.write_report()
