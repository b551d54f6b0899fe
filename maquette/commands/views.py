"""`maquette views`: a picture or words to views of the object, with any prior that can draw them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from maquette.commands.imagedream import PARALLEL
from maquette.commands.inputs import describe_inputs, read_picture, with_elevation
from maquette.commands.method import (
    Method,
    Options,
    make_in_folder,
    print_cost,
    read_options,
    slug,
)
from maquette.commands.pictures import labelled_rows
from maquette.commands.text import check_vocabulary, value_of
from maquette.errors import UserError
from maquette.images import Prompt, Views, save_image
from maquette.methods.views import WORDS_ALONE, Config, configure, sample_any_views
from maquette.run import Run
from maquette.run.files import atomic_path
from maquette.run.memory import GIB
from maquette.stages.look import view_names


@dataclass(frozen=True)
class ViewsOptions(Options):
    """The common options, without a need for a picture."""

    image: Annotated[Positional[Path | None], arg(metavar="IMAGE")] = None  # type: ignore[assignment]
    """Picture of one object: PNG, JPEG or WebP; may be left out for priors that read words (--caption)."""


def configure_views(preset: str, quality: str, prior: str | None = None) -> Config:
    """The same numbers that `maquette imagedream` uses for its views, or those of the prior's own authors."""
    return configure(preset, quality, prior)


def sample(prompt: Prompt, config: Config, run: Run) -> Views:
    """The named views; with several candidates the first of them, and all of them on a sheet."""
    candidates = sample_any_views(prompt, config, run)
    names = view_names(candidates[0].cameras)
    run.log(event="views", names=names)
    print(f"views: {', '.join(f'{index:03d} {name}' for index, name in enumerate(names))}", file=sys.stderr)
    if len(candidates) > 1:
        rows = [views.composite(torch.ones(3)) for views in candidates]
        picks = [f"pick {config.sampling.pick + row}" for row in range(len(rows))]
        with atomic_path(run.folder / "candidates.png") as temporary:
            save_image(temporary, labelled_rows(rows, picks, names))
        print(f"candidates: {run.folder / 'candidates.png'}; take row K with --sampling.pick K", file=sys.stderr)
    return candidates[0]


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes, as for `maquette imagedream`."""
    if not config.prior.startswith("nano"):
        return 0.0, 0
    return (0.10 * config.sampling.evaluations * config.seeds + 8.0) / PARALLEL, GIB // 2


METHOD = Method(
    "views", "A picture, or words, to consistent views of the object, in seconds.", configure_views, sample, estimate
)


def run(arguments: list[str]) -> int:
    """Draw the views."""
    method = replace(METHOD, config=partial(configure_views, prior=value_of(arguments, "--prior")))
    options, config = read_options(method, arguments, ViewsOptions)
    if options.estimate:
        print_cost(method, config, options)
        return 0
    if options.export:
        raise UserError(f"--export {options.export[0]}: `maquette views` makes pictures, and no object to write")
    caption = " ".join(options.caption.split())
    if options.image is not None:
        prompt = read_picture(options.image, caption, options)
        name, inputs = options.image.stem, describe_inputs(options.image, options)
        if config.prior in WORDS_ALONE:
            if not caption:
                raise UserError(f"{config.prior} reads words alone; say with --caption what the picture shows")
            print(f"note: {config.prior} reads words alone; the picture is not looked at", file=sys.stderr)
    elif not caption:
        raise UserError("IMAGE is missing; `maquette views --help` says what it is. (Words alone go with --caption.)")
    elif options.mask is not None or options.matting != "auto":
        raise UserError(
            "--mask and --matting are about a picture, and IMAGE is missing; leave them out for words alone"
        )
    else:
        if config.prior == "nano":
            check_vocabulary(caption)
        prompt, name = Prompt(None, caption=caption, negative=options.negative), caption[:40]
        prompt = with_elevation(prompt, options.elevation)
        inputs = {"caption": caption, "preset": options.preset, "quality": options.quality}
        if options.negative:
            inputs["negative"] = options.negative
    out = options.out or Path("runs") / f"views-{slug(name)}"
    return make_in_folder(method, prompt, config, out, inputs, options, arguments)
