"""Where the files of a published model lie: beside each other in one folder, fetched or brought by hand.

    WEIGHTS/imagedream/sd-v2.1-base-4view-ipmv.pt      as published
    WEIGHTS/clip-tokenizer/merges.txt, vocab.json      shared by all
    WEIGHTS/mvdream/card.json, mvdream.safetensors     a converted package

A file may also be named directly; what it needs is then looked for beside it, and in the folder of all weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maquette.errors import UserError
from maquette.priors.cards import CARD_FILE
from maquette.priors.clip_tokenizer import PLACES, find_merges
from maquette.priors.registry import MODELS, Model


def weights_folder() -> Path:
    """The folder of all fetched weights: MAQUETTE_WEIGHTS if that is set, else one in the user's cache."""
    if named := os.environ.get("MAQUETTE_WEIGHTS"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "maquette" / "weights"


@dataclass(frozen=True)
class FoundWeights:
    """The files of a published model on this machine."""

    model: Model
    file: Path
    """A published file, the first of several, or the card of a converted package."""
    folder: Path
    """Where the model's files are, under their published names."""

    @property
    def packaged(self) -> bool:
        """Whether `file` is a card."""
        return self.file.name == CARD_FILE

    @property
    def root(self) -> Path:
        """What a loader takes: the one file, or the folder of a model that was published as several."""
        return self.file if self.file.parent == self.folder else self.folder

    def merges(self) -> Path:
        """The tokeniser's list of merges. UserError naming the places where it was looked for."""
        for folder in self._nearby("clip-tokenizer"):
            if (found := find_merges(folder)) is not None:
                return found
        raise UserError(
            f"{self.model.name} needs the list of merges of its tokeniser: put {PLACES[0]} into {self.folder}, or let "
            "`maquette models fetch clip-tokenizer` get it"
        )

    def towers(self) -> Path | None:
        """OpenCLIP's own file, for checkpoints without CLIP's towers; None where it is not here."""
        names = [file.path for file in MODELS["clip-vit-h14"].source.files]
        names += [str(Path(name).with_suffix(".safetensors")) for name in names]
        places = (folder / name for folder in self._nearby("clip-vit-h14") for name in names)
        return next((place for place in places if place.is_file()), None)

    def _nearby(self, name: str) -> Iterator[Path]:
        """Folders that may hold the files of `name`."""
        here = self.folder
        yield from (here, here / name, here.parent / name, weights_folder() / name)


def find_published(model: Model, weights: Path | None = None, folder: Path | None = None) -> FoundWeights:
    """The files of a model: at `weights` (a file, or a folder), or else in `folder` (default: the folder of all).

    UserError saying where it was looked for, and how to get them.
    """
    if weights is not None and weights.is_file():
        return FoundWeights(model, weights, weights.parent)
    if weights is not None and not weights.exists():
        raise UserError(f"no weights at {weights}")
    base = weights or folder or weights_folder()
    names = [CARD_FILE, *(file.path for source in model.sources if source.loadable for file in source.files)]
    for place in (base / model.name, base):
        for name in names:
            # A card directly in the folder may be of any prior; the caller compares its name.
            if (place / name).is_file():
                return FoundWeights(model, place / name, place)
    wanted = names[1] if len(names) > 1 else CARD_FILE
    raise UserError(
        f"the weights of {model.name!r} are not here: there is no {wanted} in {base / model.name}; "
        f"`maquette models fetch {model.name}` gets them, or name yours with --weights"
    )


def present(model: Model, folder: Path | None = None) -> Path | None:
    """The model's first file in the folder of all weights, or None."""
    try:
        return find_published(model, None, folder).file
    except UserError:
        return None
