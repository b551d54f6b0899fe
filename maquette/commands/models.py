"""`maquette models`: which priors are here, what a file holds, what may be done with it, and how to get more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from maquette.commands.arguments import choose, parse
from maquette.commands.model_files import convert_models, fetch_models, state_of
from maquette.errors import UserError
from maquette.priors.cards import CARD_FILE, Card
from maquette.priors.fetch import missing_files
from maquette.priors.hub import PUBLISHED, SHIPPED, find_card, load_prior, load_view_prior, open_package, package_of
from maquette.priors.identify import compare
from maquette.priors.published import MODELS as LOADED
from maquette.priors.published import outline, parts
from maquette.priors.registry import ALIASES, MODELS, Model, find_model
from maquette.priors.single_view_files import looks_like, weights_path
from maquette.priors.single_view_package import PACKAGED, unpack_single_view
from maquette.priors.tensor_files import TensorFile, open_tensors
from maquette.priors.weights_folder import FoundWeights, find_published, present, weights_folder
from maquette.run.terms import effective_terms


@dataclass(frozen=True)
class ListOptions:
    json: bool = False
    """Print everything that is known, as JSON."""
    weights_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where fetched weights are; default: MAQUETTE_WEIGHTS, or a folder in your cache."""


@dataclass(frozen=True)
class CheckOptions:
    weights: Annotated[Positional[str | None], arg(metavar="FILE-OR-NAME")] = None
    """A file or folder of weights, or the name of a model; the embedded priors by default."""
    weights_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where fetched weights are; default: MAQUETTE_WEIGHTS, or a folder in your cache."""


def run(arguments: list[str]) -> int:
    """Do with the priors what the first word says."""
    choices = {
        "list": (list_models, "all priors, with role, licence and size, and which of them are here"),
        "check": (check_models, "which model a file holds, and whether it is whole; needs no network"),
        "convert": (convert_models, "a published file to a package of ours, or back"),
        "fetch": (fetch_models, "get a published model"),
    }
    return choose(choices, arguments, "maquette models")


def list_models(arguments: list[str]) -> int:
    """Print the embedded priors and the registry."""
    about = "The priors inside the package, and the published models of the registry."
    options = parse(ListOptions, arguments, "maquette models list", about=about)
    cards = {name: _find(name) for name in SHIPPED}
    folder = options.weights_dir or weights_folder()
    if options.json:
        inside = {name: _facts(card) for name, card in cards.items()}
        print(json.dumps(inside | {name: _known(model, folder) for name, model in MODELS.items()}, indent=2))
        return 0
    for name, card in cards.items():
        if isinstance(card, str):
            print(f"{name:<26} {card}")
        else:
            facts = _facts(card)
            print(f"{name:<26} {facts['bytes'] / 1e6:.1f} MB, {facts['licence']}, sha256 {facts['sha256'][:16]}")
    print(f"\npublished models, looked for in {folder}")
    for model in MODELS.values():
        print(f"{model.name:<26} {model.role}; {_size(model)}")
        print(f"{'':<26} {model.licence.name}: commercial use {model.licence.commercial}")
        state = state_of(model, folder)
        print(f"{'':<26} {state}{'' if model.loadable else '; this version cannot load it yet'}")
    return 0


def check_models(arguments: list[str]) -> int:
    """Say what is named, one line each; exit code 2 for what cannot be used."""
    about = "Which model a file holds, what it lacks, and whether it is whole; needs no network."
    options = parse(CheckOptions, arguments, "maquette models check", about=about)
    if options.weights is None:
        for name in SHIPPED:
            _load(name, None)
        return 0
    path = Path(options.weights)
    if not path.exists():
        if options.weights in SHIPPED:
            return _load(options.weights, None)
        if ALIASES.get(options.weights, options.weights) not in MODELS:
            raise UserError(
                f"there is nothing at {path}, and no model of that name; name a file of weights, a package, or one of "
                f"{', '.join((*SHIPPED, *MODELS))}."
            )
        model = find_model(options.weights)
        found = find_published(model, None, options.weights_dir)
        if found.root.is_dir():
            return _check_folder(found)
        _check_path(found.file)
        if model.name in LOADED and not found.packaged:
            print(f"tokeniser: {found.merges()}")
        return 0
    _check_path(path)
    return 0


def _check_folder(found: FoundWeights) -> int:
    """A model that was published as several files: all of them are there, and each can be read."""
    missing = missing_files(found.model, found.folder.parent)
    if found.folder.name == found.model.name and missing:
        raise UserError(f"{found.folder} is not whole: it lacks {', '.join(missing)}")
    _check_networks(found.folder)
    print(f"licence of {found.model.name}: {found.model.licence.name}. {found.model.licence.terms}")
    return 0


def _check_networks(folder: Path) -> None:
    """Every file of weights of a folder in the diffusers layout can be read."""
    for file in sorted((*folder.glob("*/*.safetensors"), *folder.glob("*/*.bin"))):
        opened = open_tensors(file)
        print(f"{file}: {len(opened.tensors)} tensors, {_dtypes(opened.dtypes())}; it looks like {looks_like(opened)}")


def _check_path(path: Path) -> None:
    if path.is_dir() and not (path / CARD_FILE).is_file():
        content = weights_path(path)
        if isinstance(content, TensorFile):
            _check_file(content.path)
            return
        _check_networks(path)
        print(f"{path} is a folder in the diffusers layout; which model it is of, the name that you ask for must say")
        return
    card = package_of(path / CARD_FILE if path.is_dir() else path)
    if card is None:
        _check_file(path)
    elif card.kind == PACKAGED:
        unpack_single_view(card, card.name)
        print(f"{path}: {card.name!r}, whole, and every tensor has its place")
        print(f"licence: {card.values['licence']}")
    elif card.kind != PUBLISHED:
        _load(card.name, path)
    else:
        config, file, _ = open_package(card, card.name)
        wanted = {
            f"{part}.{name}": tuple(tensor.shape)
            for part, what in parts(config).items()
            for name, tensor in outline(what).state_dict().items()
        }
        have = {name: stored.shape for name, stored in file.tensors.items()}
        if wrong := sorted(name for name in wanted.keys() | have.keys() if wanted.get(name) != have.get(name)):
            raise UserError(f"{file.path} does not fit its card: {len(wrong)} tensors differ, such as {wrong[0]!r}")
        print(f"{path}: {card.name!r}, whole, and every tensor has its place")
        print(f"numbers: {_dtypes(file.dtypes())}; licence: {card.values['licence']}")


def _check_file(path: Path) -> None:
    file = open_tensors(path)
    matches = compare(file)
    about = f"{len(file.tensors)} tensors, {file.nbytes / 1e9:.2f} GB, {_dtypes(file.dtypes())}"
    if not matches:
        raise UserError(f"{path} ({about}) is of no model that this version knows; it looks like {looks_like(file)}")
    best = matches[0]
    if not best.exact:
        raise UserError(
            f"{path} ({about}) is of no known model; it looks like {looks_like(file)}; the nearest is {best}"
        )
    print(f"{path}: {best}")
    print(about)
    if len(best.models) > 1:
        print(f"files of {' and '.join(best.models)} cannot be told apart: say which one it is by the name you ask for")
    if best.lacks_towers:
        print("CLIP's towers are not in it; open_clip_pytorch_model.bin of clip-vit-h14 is needed beside it")
    if file.others:
        print(f"passed over: {', '.join(file.others[:5])}{', ...' if len(file.others) > 5 else ''}")
    for sentence in effective_terms([_card_of(MODELS[name]) for name in best.models]).sentences:
        print(f"licence of {sentence}")


def _card_of(model: Model) -> dict[str, str]:
    licence = model.licence
    return {"name": model.name, "licence": licence.name, "commercial": licence.commercial, "terms": licence.terms}


def _load(name: str, path: Path | None) -> int:
    (load_view_prior if find_card(name, path).kind == "nano-zero123" else load_prior)(name, path)
    print(f"{path or name}: {name!r}, whole, and every tensor has its place")
    return 0


def _dtypes(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _size(model: Model) -> str:
    sizes = [file.bytes for file in model.source.files]
    known = sum(size for size in sizes if size is not None)
    return f"{known / 1e9:.2f} GB" if None not in sizes and known else model.source.note or "size unknown"


def _known(model: Model, folder: Path) -> dict[str, Any]:
    from maquette.run.settings import plain

    here = present(model, folder)
    return {**plain(model), "loadable": model.loadable, "here": str(here) if here else None}


def _find(name: str) -> Card | str:
    try:
        return find_card(name)
    except UserError as error:
        return f"not usable: {error}"


def _facts(card: Card | str) -> dict[str, Any]:
    if isinstance(card, str):
        return {"error": card}
    values = {key: value for key, value in card.values.items() if key != "config"}
    return {**values, "sha256": card.sha256, "bytes": sum(entry["bytes"] for entry in card.values["files"])}
