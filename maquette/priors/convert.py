"""A published file to our package and back, tensor by tensor; both ways lose nothing unless a precision is asked for.

The package is one safetensors file under our names, its card, and the tokeniser's list of merges.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from maquette.errors import UserError
from maquette.priors.cards import CARD_FILE, Card, read_card
from maquette.priors.clip_tokenizer import read_tokenizer
from maquette.priors.hub import PUBLISHED, open_package, open_released
from maquette.priors.published import packaged, unpackaged
from maquette.priors.tensor_files import write_safetensors, write_torch
from maquette.priors.weights_folder import FoundWeights
from maquette.run.files import atomic_path, write_json
from maquette.run.fingerprints import file_sha256
from maquette.run.settings import plain


def to_package(found: FoundWeights, folder: Path, dtype: torch.dtype | None = torch.float16) -> Card:
    """Convert a released file into a package in `folder`; numbers become `dtype` (None: as they are), but the
    autoencoder's, which half precision overflows, stay.

    UserError naming what does not fit; `folder` is then as it was.
    """
    model = found.model
    config, file, facts = open_released(found)
    merges = found.merges()
    read_tokenizer(merges, config.text.vocabulary)  # or the package would be of no use
    listed = list(packaged(file, config, dtype))
    if (folder / CARD_FILE).exists():
        raise UserError(f"{folder} holds a weights package already; choose another folder with --out")
    target = folder / f"{model.name}.safetensors"
    with atomic_path(target) as temporary:
        write_safetensors(temporary, listed, {"card": CARD_FILE})
    kept = "merges.txt" if merges.suffix == ".txt" else merges.name
    with atomic_path(folder / kept) as temporary:
        shutil.copyfile(merges, temporary)
    card = {
        "name": model.name, "kind": PUBLISHED, "licence": model.licence.name,
        "commercial": model.licence.commercial, "terms": model.licence.terms, "role": model.role,
        **{"source_sha256" if key == "sha256" else "source_files" if key == "files" else key: value
           for key, value in facts.items()},
        "tokenizer": _entry(folder / kept), "config": plain(config), "files": [_entry(target)],
    }  # fmt: skip
    write_json(folder / CARD_FILE, card)
    return read_card(folder)


def to_published(card: Card, target: Path, dtype: torch.dtype | None = None) -> None:
    """Write the released file that a package was made from: the same names in the same layout.

    Numbers become `dtype` (None: as in the package).
    """
    config, file, _ = open_package(card, card.name)
    if config.family.endswith("-folder"):
        raise UserError(f"{card.path} was made from a folder of another layout, which is its way back; keep it")
    if target.exists():
        raise UserError(f"{target} is there already; choose another file with --out")
    with atomic_path(target) as temporary:
        write_torch(temporary, unpackaged(file, config, dtype))


def _entry(path: Path) -> dict[str, object]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
