"""`maquette dreambooth3d`: a few photos of one's own thing and a sentence to a textured 3D object."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from maquette.asset import Asset, ExportFormat
from maquette.commands.arguments import parse
from maquette.commands.imagedream import PARALLEL
from maquette.commands.inputs import announce_matting
from maquette.commands.method import (
    Method,
    make_in_folder,
    method_options,
    print_cost,
    slug,
    starting_config,
    with_steps,
)
from maquette.errors import UserError
from maquette.images import Prompt, save_image, sheet
from maquette.matting import Matting
from maquette.methods.dreambooth3d import Config, configure, dreambooth3d
from maquette.priors.nano.vocabulary import unknown_words
from maquette.priors.placement import Precision
from maquette.run import Run
from maquette.run.files import atomic_path
from maquette.run.fingerprints import fingerprint
from maquette.run.memory import GIB
from maquette.stages.learned import LearnedSubject, Photos, find_learned
from maquette.subjects import Subject, read_subject
from maquette.wording import require_subject, without_subject

LONGEST = 40
"""Characters of the caption that become the folder's name."""


@dataclass(frozen=True)
class Options:
    """Options of the command; the method's own config is beside them."""

    folder: Annotated[Positional[Path | None], arg(metavar="FOLDER")] = None
    """Three to six photos of the subject, or a video file; left out with --subject-from."""
    subject: Annotated[str, arg(metavar="NOUN")] = ""
    """What the subject is, in a word or two: dog."""
    caption: str = ""
    """What it shall be, with [v] for the subject: "a [v] dog asleep"."""
    masks: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Masks of the photos, files of the same names; an alpha channel serves too."""
    matting: Matting | None = None
    """How photos without a mask are cut out, as in `maquette imagedream --help`; by default --photos.cut-out says."""
    subject_from: Annotated[Path | None, arg(metavar="RUN")] = None
    """The folder of a run that learned the subject before: only the object is made anew, for another caption."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where everything goes; default: runs/dreambooth3d-CAPTION."""
    preset: Literal["nano", "paper"] = "nano"
    """nano: the embedded prior, made for a CPU; paper: the paper's own settings, for published weights and a GPU."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time to spend."""
    seed: int = 0
    """Same seed, same machine: the same bytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Of published priors; auto: float16 on a GPU, float32 on a CPU. What learns is float32 all the same."""
    low_memory: bool = False
    """Published priors in less memory, with slower steps; learning recomputes what it would keep (as with
    --personal.checkpointing)."""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """Steps of each field fit; schedules are fractions of it."""
    export: tuple[ExportFormat, ...] = ()
    """Write the object in these formats too, beside asset.glb; a finished run is not made again for it."""
    overwrite: bool = False
    """Replace a run with other settings in that folder."""
    estimate: bool = False
    """Print the time and memory that these settings take, as far as measured, and stop; FOLDER may be left out."""


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes of memory beyond what the libraries take; zeros for priors of unknown cost.

    Measured with the nano prior on one core of an AMD EPYC with AVX-512: 0.18 s a step of either field, 0.06 s of a
    fit to first views, 0.035 s a picture that is learned, 55 s for everything else, imports, mesh and report included.
    """
    if config.prior != "nano":
        return 0.0, 0
    processor = 0.18 * config.initial_fit.steps + 0.035 * config.personal.steps * config.personal.batch + 55.0
    begins = 0 if config.first_views is None else config.first_views.fit.steps
    processor += 0.06 * begins
    if config.variant == "full":
        processor += 0.06 * begins
        again = config.multiview.personal
        processor += 0.18 * config.fit.steps + 0.035 * again.steps * again.batch
    return processor / PARALLEL, GIB


ABOUT = "A few photos of one's own thing and a sentence to a textured 3D object (arXiv:2303.13508)."


def run(arguments: list[str]) -> int:
    """Make the object."""
    options, config = read_options(arguments)
    if options.estimate:
        print_cost(Method("dreambooth3d", ABOUT, configure, _never, estimate), config, options)
        return 0
    subject = read_input(options, config)
    noun = subject.photos.noun if isinstance(subject, LearnedSubject) else subject.noun
    check_words(options.caption, noun, config)

    def tell(stage: str, step: int | None, what: Any) -> None:
        if stage == "photos" and isinstance(what, Photos):
            told = () if isinstance(subject, LearnedSubject) else subject.notes
            for note in what.notes:
                if note not in told:
                    print(f"note: {note}", file=sys.stderr)

    def make(prompt: Prompt, config: Config, run: Run) -> Asset:
        keep_photos(subject, run)
        run.watch(tell)
        return dreambooth3d(subject, prompt.caption, config, run)

    method = Method("dreambooth3d", ABOUT, configure, make, estimate)
    out = options.out or Path("runs") / f"dreambooth3d-{slug(without_subject(options.caption)[:LONGEST])}"
    inputs: dict[str, Any] = {"caption": options.caption, "subject": noun, "preset": options.preset}
    inputs |= {"quality": options.quality, "photos_sha256": fingerprint(subject)}
    return make_in_folder(method, Prompt(None, options.caption), config, out, inputs, options, arguments)


def _never(prompt: Prompt, config: Config, run: Run) -> Asset:
    raise AssertionError("an estimate makes nothing")


def read_options(arguments: list[str]) -> tuple[Options, Config]:
    """The options and the method's config."""
    method = Method("dreambooth3d", ABOUT, configure, _never)
    kind = method_options(Options, starting_config(method, arguments))
    options: Any = parse(kind, arguments, "maquette dreambooth3d", about=ABOUT)
    config = options.config
    if options.steps is not None:
        if options.steps < 1:
            raise UserError(f"--steps: expected a whole number of at least 1, got {options.steps}")
        config = with_steps(config, options.steps)
    if options.matting is not None:
        config = replace(config, photos=replace(config.photos, cut_out=options.matting))
    return options, config


def read_input(options: Options, config: Config) -> Subject | LearnedSubject:
    """The subject that the options name; UserError, one sentence, for whatever is missing or does not fit."""
    if not options.caption.strip():
        example = f'"a [v] {options.subject or "dog"} asleep"'
        raise UserError(f"--caption is missing: say what the subject shall be, as in {example}")
    require_subject(options.caption)
    if options.subject_from is not None:
        if options.folder is not None or options.masks is not None or options.matting is not None:
            raise UserError("--subject-from brings its own photos; leave FOLDER, --masks and --matting out")
        learned = find_learned(options.subject_from)
        if options.subject and options.subject.strip() != learned.photos.noun:
            raise UserError(
                f"--subject: the subject of {options.subject_from} is a {learned.photos.noun}, not a {options.subject}"
            )
        return learned
    if options.folder is None:
        raise UserError(
            "FOLDER is missing: name a folder with 3-6 photos, or a run that learned the subject with --subject-from"
        )
    if not options.subject.strip():
        raise UserError('--subject is missing: say in a word what the photos show, as in --subject "dog"')
    announce_matting(config.photos.cut_out)
    subject = read_subject(options.folder, noun=options.subject, caption=options.caption, masks=options.masks)
    for note in subject.notes:
        print(f"note: {note}", file=sys.stderr)
    return subject


def check_words(caption: str, noun: str, config: Config) -> None:
    """A note for words that the embedded prior was never taught."""
    strange = unknown_words(f"{without_subject(caption)} {noun}") if config.prior == "nano" else []
    if strange:
        print(f"note: nano does not know {', '.join(strange)}, and passes over it", file=sys.stderr)


def keep_photos(subject: Subject | LearnedSubject, run: Run) -> None:
    """Write prompt.png, all photos in a square."""
    pictures = subject.photos.pictures if isinstance(subject, LearnedSubject) else subject.photos
    shown = pictures.composite(range(len(pictures)), torch.ones(len(pictures), 3))
    with atomic_path(run.folder / "prompt.png") as temporary:
        save_image(temporary, sheet(shown, columns=math.ceil(math.sqrt(len(shown))), gap=4))
