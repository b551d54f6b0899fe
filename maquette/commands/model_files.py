"""`maquette models fetch` and `maquette models convert`: published files to this machine, and into our form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from maquette.commands.arguments import parse
from maquette.errors import UserError
from maquette.priors.cards import read_card
from maquette.priors.convert import to_package, to_published
from maquette.priors.fetch import Hub, HuggingFaceHub, carry_out, completion, missing_files, plan
from maquette.priors.hub import PUBLISHED, package_of
from maquette.priors.published import MODELS as LOADED
from maquette.priors.registry import ALIASES, MODELS, Model, find_model, with_needs
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS, ZERO123_MODELS
from maquette.priors.single_view_package import PACKAGED, pack_single_view
from maquette.priors.weights_folder import FoundWeights, find_published, weights_folder
from maquette.run.memory import gib

make_hub: Callable[[], Hub] = HuggingFaceHub
"""Who is asked for files; tests put another one here."""

CONVERTIBLE = (*LOADED, *ZERO123_MODELS, *STABLE_DIFFUSION_MODELS)
"""Published models that have a package form."""

NEXT = {
    "imagedream": "maquette imagedream IMAGE --preset paper",
    "imagedream-local": "maquette imagedream IMAGE --preset paper --prior imagedream-local --control local",
    "mvdream": 'maquette text "WORDS" --prior mvdream',
    "mvdream-sd15": 'maquette text "WORDS" --prior mvdream-sd15',
    "stable-diffusion-1.5": 'maquette text "WORDS" --prior sd15',
    "stable-diffusion-2.1-base": 'maquette text "WORDS" --prior sd',
    **{name: f"maquette views IMAGE --prior {name}" for name in ZERO123_MODELS},
}
"""What to do with a model once it is here."""


@dataclass(frozen=True)
class FetchOptions:
    name: Annotated[Positional[str], arg(metavar="MODEL")]
    """A model of the registry; `maquette models list` shows them."""
    weights_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where it goes; default: MAQUETTE_WEIGHTS, or a folder in your cache."""
    source: Annotated[str | None, arg(metavar="REPOSITORY")] = None
    """Take it from this one of its repositories, instead of the first that has all files."""
    offline: bool = False
    """Ask nobody: say which files are here, and which are missing and where they belong."""
    dry_run: bool = False
    """Look at every file on the hub, and bring none."""


@dataclass(frozen=True)
class ConvertOptions:
    weights: Annotated[Positional[str], arg(metavar="FILE-OR-NAME")]
    """A published file, or the name of a fetched model: becomes a package. A package: becomes a published file."""
    out: Annotated[Path | None, arg(metavar="PLACE")] = None
    """Folder of the package (default: beside the file), or file to write (default: NAME.pt beside the package)."""
    model: Annotated[str | None, arg(metavar="NAME")] = None
    """Which model the file is of, where its own name does not tell."""
    dtype: Literal["float16", "bfloat16", "float32", "keep"] | None = None
    """Precision of the numbers; default: float16 into a package, and back as they are in the package."""
    weights_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where fetched weights are; default: MAQUETTE_WEIGHTS, or a folder in your cache."""


def fetch_models(arguments: list[str]) -> int:
    """Bring a model and what it needs, or say what is missing."""
    about = "Get a published model, with everything that it needs; every file is looked at before the first byte."
    options = parse(FetchOptions, arguments, "maquette models fetch", about=about)
    model = find_model(options.name)
    folder = options.weights_dir or weights_folder()
    for needed in with_needs(model):
        print(f"{needed.name}: {needed.licence.name}. {needed.licence.terms}")
        if not needed.licence.verified:
            print(f"note: the licence of {needed.name} was not looked up on its page", file=sys.stderr)
    for caution in model.cautions:
        print(f"note: {caution}", file=sys.stderr)
    if not model.loadable:
        print(f"note: this version cannot load {model.name} yet", file=sys.stderr)
    if options.offline:
        return _say_what_is_here(model, folder)
    hub = make_hub()
    plans = plan(model, folder, hub, options.source)
    for one in plans:
        for reason in one.passed_over:
            print(f"note: passed over {reason}", file=sys.stderr)
        for file in one.listing.files:
            state = "" if file in one.wanted else " (here already)"
            print(f"  {one.listing.repo}/{file.path}  {gib(file.bytes)}{state}")
    print(f"{gib(sum(one.bytes for one in plans))} to fetch into {folder}" if plans else "everything is here already")
    if options.dry_run:
        return 0
    for one in plans:
        carry_out(one, hub, lambda line: print(line, file=sys.stderr))
    if model.name in NEXT:
        print(f"{model.name} is ready: `{NEXT[model.name]}`")
    return 0


def state_of(model: Model, folder: Path) -> str:
    """Whether a model is in the folder of all weights, what it lacks there, and the command that brings it."""
    fetch = f"`maquette models fetch {model.name}`"
    try:
        found = find_published(model, None, folder)
    except UserError:
        return f"not here: {fetch}"
    if found.packaged:
        try:
            named = read_card(found.file).name
        except UserError as error:
            return f"not usable: {error}"
        return f"here: {found.file.name}" if named == model.name else f"not here: {fetch}"
    lacks = [] if found.folder == folder else missing_files(model, folder)
    needed = [*model.needs, *([model.completed_by] if completion(model, folder) else [])]
    lacks += [name for name in needed if not _at_hand(found, name, folder)]
    if not lacks:
        return f"here: {found.file.name}"
    more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
    return f"here in part: {found.file.name}, without {', '.join(lacks[:3])}{more}: {fetch}"


def _at_hand(found: FoundWeights, name: str, folder: Path) -> bool:
    """Whether what a model needs lies where its loader looks, which is beside it too."""
    if not missing_files(MODELS[name], folder):
        return True
    if name == "clip-vit-h14":
        return found.towers() is not None
    with suppress(UserError):
        return name == "clip-tokenizer" and found.merges().is_file()
    return False


def _say_what_is_here(model: Model, folder: Path) -> int:
    absent = []
    part = completion(model, folder)
    for needed in (*with_needs(model), *([part] if part else [])):
        missing = missing_files(needed, folder)
        absent += [f"{folder / needed.name / name} (of {needed.source.repo})" for name in missing]
        print(f"{needed.name}: {'all files are here' if not missing else 'missing ' + ', '.join(missing)}")
    if absent:
        raise UserError(f"--offline: {model.name} is not complete here; bring {', '.join(absent)}")
    return 0


def convert_models(arguments: list[str]) -> int:
    """Convert what is named; the direction follows from what it is."""
    about = "A published file to a package of ours (half the size, no pickle), or a package to the published layout."
    options = parse(ConvertOptions, arguments, "maquette models convert", about=about)
    named = Path(options.weights)
    card = package_of(named / "card.json" if (named / "card.json").is_file() else named) if named.exists() else None
    if card is not None:
        if card.kind == PACKAGED:
            raise UserError(
                f"{card.path} is a package of {card.name!r}, and its way back is its published file; keep it"
            )
        if card.kind != PUBLISHED:
            raise UserError(f"{card.path} holds {card.name!r}, which was never published in another layout")
        target = options.out or card.path.with_name(f"{card.name}.pt")
        to_published(card, target, _dtype(options.dtype or "keep"))
        print(f"{target}: {card.name}, in the published layout, {gib(target.stat().st_size)}")
        return 0
    found = _find(options)
    convert = to_package if found.model.name in LOADED else pack_single_view
    made = convert(found, options.out or found.folder, _dtype(options.dtype or "float16"))
    size = sum(entry["bytes"] for entry in made.values["files"])
    print(f"{made.path.parent}: {made.name}, {gib(size)}, sha256 {made.sha256[:16]}")
    print(f"use it: --prior {made.name} --weights {made.path.parent}")
    return 0


def _find(options: ConvertOptions) -> FoundWeights:
    """The published file that is named, and the model that it is of."""
    path = Path(options.weights)
    if not path.exists():
        if ALIASES.get(options.weights, options.weights) not in MODELS:
            raise UserError(f"there is nothing at {path}, and no published model of that name")
        model = _convertible(find_model(options.weights))
        found = find_published(model, None, options.weights_dir)
        if found.packaged:
            raise UserError(
                f"{model.name} is a package already ({found.file.parent}); name its folder to convert it back"
            )
        return found
    if options.model is not None:
        return find_published(_convertible(find_model(options.model)), path)
    if path.is_dir():
        raise UserError(f"{path} holds no package; name the file, or say --model NAME")
    names = [name for name in CONVERTIBLE if path.name in [file.path for file in MODELS[name].source.files]]
    if len(names) != 1:
        raise UserError(
            f"{path.name} is not the name under which a model was published; say which one it is with --model "
            f"({', '.join(CONVERTIBLE)})"
        )
    return find_published(MODELS[names[0]], path)


def _convertible(model: Model) -> Model:
    if model.name not in CONVERTIBLE:
        raise UserError(f"{model.name} has no package form in this version; {', '.join(CONVERTIBLE)} have one")
    return model


def _dtype(name: str) -> torch.dtype | None:
    return None if name == "keep" else getattr(torch, name)
