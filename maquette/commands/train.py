"""`maquette train`: the recipes of the embedded priors and of the judge that measures them, from objects to weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from maquette.commands.arguments import choose, parse
from maquette.commands.render import ObjectProgress, require_objects, tell_skipped
from maquette.evaluation.judge_training import JudgeTraining, train_judge
from maquette.run.progress import Progress
from maquette.run.record import Log
from maquette.run.run import resolve_device
from maquette.training.nano import NanoRecipe, train_nano
from maquette.training.nano_view import train_nano_view
from maquette.training.novel_view import NovelViewTraining
from maquette.training.packs import PackConfig, pack_objects
from maquette.training.processes import find_accelerator

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class NanoOptions:
    objects: Annotated[Positional[tuple[Path, ...]], arg(metavar="OBJECTS...")] = ()
    """GLB, OBJ, PLY or STL files, or folders of them, to render first; not needed where --packed has renders."""
    packed: Path = Path("runs/packed")
    """Folder of packed renders (`maquette render --pack`)."""
    out: Path = Path("runs/nano")
    """Folder for checkpoints, log and the finished package; the same command goes on from there."""
    initial: Path | None = None
    """Start from the weights of an earlier training's folder, or of a weights package."""
    val: Path | None = None
    """Folder of packed renders of other objects, on which the prior is measured every 500 steps."""
    seconds: float | None = None
    """Stop the prior's loop after so many seconds, keeping the state; the same command goes on."""
    device: Device = "auto"
    """Where to train."""
    config: Annotated[NanoRecipe, arg(name="")] = NanoRecipe()
    """The recipe."""


@dataclass(frozen=True)
class ViewOptions:
    packed: Path = Path("runs/packed")
    """Folder of packed renders (`maquette render --pack`)."""
    out: Path = Path("runs/nano-zero123")
    """Folder for checkpoint, log and the finished package; the same command goes on from there."""
    encoder: Path | None = None
    """Nano package whose image encoder it reads pictures with; the shipped one if none is given."""
    initial: Path | None = None
    """Start from the weights of an earlier training's folder, or of a weights package."""
    seconds: float | None = None
    """Stop after so many seconds, keeping the state; the same command goes on."""
    device: Device = "auto"
    """Where to train."""
    config: Annotated[NovelViewTraining, arg(name="")] = NovelViewTraining()
    """The recipe."""


@dataclass(frozen=True)
class JudgeOptions:
    packed: Path = Path("runs/packed")
    """Folder of packed renders (`maquette render --pack`)."""
    out: Path = Path("runs/judge")
    """Folder for checkpoint, log and the finished package."""
    val: Path | None = None
    """Folder of packed renders of other objects, to measure on."""
    device: Device = "auto"
    """Where to train."""
    config: Annotated[JudgeTraining, arg(name="")] = JudgeTraining()
    """The recipe."""


def run(arguments: list[str]) -> int:
    """Train what the first word names."""
    recipes = {
        "nano": (nano, "the nano prior: renders, encoders, multi-view diffusion, card"),
        "zero123": (zero123, "the nano Zero-1-to-3: a picture of an object, seen from another camera"),
        "judge": (judge, "nano-judge, the encoder that measures results and takes no part in making them"),
    }
    return choose(recipes, arguments, "maquette train")


def nano(arguments: list[str]) -> int:
    """Render if objects are named, train the encoders and the prior, write the package.

    Under `accelerate launch` each process is one of several, and the main one alone renders, logs and writes.
    """
    about = "The whole recipe of the nano prior; interrupted, the same command goes on."
    options = parse(NanoOptions, arguments, "maquette train nano", about=about)
    accelerator = find_accelerator(options.device)
    main = accelerator is None or accelerator.is_main_process
    if options.objects and main:
        with ObjectProgress() as report:
            tell_skipped(pack_objects(require_objects(options.objects), options.packed, PackConfig(), report=report))
    device = resolve_device(options.device).type
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if not main:
        train_nano(
            options.packed, options.out, options.config, device=device, initial=options.initial,
            seconds=options.seconds, log=lambda entry: None, accelerator=accelerator,
        )  # fmt: skip
        return 0
    totals = {"encoders": options.config.encoders.steps, "prior": options.config.prior.steps}
    with Account(options.out, totals) as account:
        card = train_nano(
            options.packed, options.out, options.config, device=device, initial=options.initial,
            val=options.val, seconds=options.seconds, log=account, accelerator=accelerator,
        )  # fmt: skip
    print(f"{card.path.parent}: weights and card of {card.name!r}; use them with --weights {card.path.parent}")
    return 0


def zero123(arguments: list[str]) -> int:
    """Train the nano Zero-1-to-3 and write its package."""
    options = parse(ViewOptions, arguments, "maquette train zero123", about="Train the nano Zero-1-to-3.")
    device = resolve_device(options.device).type
    with Account(options.out, {"novel view": options.config.steps}) as account:
        card = train_nano_view(
            options.packed, options.out, options.config, encoder=options.encoder, device=device,
            initial=options.initial, seconds=options.seconds, log=account,
        )  # fmt: skip
    print(f"{card.path.parent}: weights and card of {card.name!r}; use them with --weights {card.path.parent}")
    return 0


def judge(arguments: list[str]) -> int:
    """Train nano-judge and write its package."""
    options = parse(JudgeOptions, arguments, "maquette train judge", about="Train nano-judge on packed renders.")
    device = resolve_device(options.device).type
    with Account(options.out, {"judge": options.config.steps}) as account:
        train_judge(options.packed, options.out, options.config, val_folder=options.val, device=device, log=account)
    print(f"{options.out}: weights and card of nano-judge")
    return 0


class Account:
    """Writes what a training loop says to log.jsonl in its folder, and shows it as progress, one bar a stage."""

    def __init__(self, folder: Path, totals: dict[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = Log(folder / "log.jsonl")
        self._totals = totals
        self._bar: Progress | None = None

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        return self

    def __call__(self, entry: dict[str, Any]) -> None:
        figures = dict(entry)
        stage, step = figures.pop("stage", next(iter(self._totals))), figures.pop("step", None)
        figures.pop("seconds", None)
        self._log.write(stage, step, figures)
        if step is None or stage not in self._totals:
            return
        if self._bar is None or self._bar.label != stage:
            self._close()
            self._bar = Progress(self._totals[stage], stage, start=step).__enter__()
        self._bar.update(step, **{key: value for key, value in figures.items() if isinstance(value, float)})

    def __exit__(self, *error: Any) -> None:
        self._close(*error)
        self._log.close()

    def _close(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*(error or (None, None, None)))
            self._bar = None
