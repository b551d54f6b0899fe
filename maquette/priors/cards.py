"""Weights with a card: what is in the files, where it came from, and how to tell when a file is not what it claims.

A *package* of weights is a `card.json` and one or more safetensors files beside it, whose tensors together are the
whole state of a prior. The card holds the prior's configuration, the files with their sizes and sha256, the licence,
the recipe and what was measured. Everything is read in formats that cannot execute code, and every fault is one
sentence that names the file and what differs.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.run.files import atomic_path, write_json
from maquette.run.fingerprints import file_sha256

CARD_FILE = "card.json"
MAX_FILE_BYTES = 16 * 2**20
"""Files of shipped weights are kept below this, which code hosts accept without large-file storage."""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Card:
    """A card and the folder that it lies in."""

    path: Path
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The prior's name."""
        return str(self.values["name"])

    @property
    def kind(self) -> str:
        """Which assembly builds the prior."""
        return str(self.values["kind"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The prior's configuration as plain data."""
        return self.values["config"]

    @property
    def sha256(self) -> str:
        """One hash for all files: that of the file's, or of their hashes in order where there are several."""
        import hashlib

        hashes = [entry["sha256"] for entry in self.values["files"]]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_card(path: Path) -> Card:
    """The card at `path` (the JSON file, or the folder that holds it). UserError if it is missing or no card."""
    path = path / CARD_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; give the folder or the card.json of a weights package")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a card of weights: it cannot be read as JSON ({error})") from None
    wanted = {"name": str, "kind": str, "licence": str, "files": list, "config": dict}
    lacking = [
        key for key, kind in wanted.items() if not isinstance(values, dict) or not isinstance(values.get(key), kind)
    ]
    if lacking:
        raise UserError(f"{path} is not a card of weights: it lacks {', '.join(lacking)}")
    files = values["files"]
    keys = ("file", "bytes", "sha256")
    if not files or not all(isinstance(entry, dict) and all(key in entry for key in keys) for entry in files):
        raise UserError(
            f"{path} is not a card of weights: every entry of 'files' names a file, its bytes and its sha256"
        )
    return Card(path, values)


def write_package(
    folder: Path,
    state: Mapping[str, Tensor],
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float16,
    max_bytes: int = MAX_FILE_BYTES,
) -> Card:
    """Write tensors and their card into `folder`; floating-point tensors are stored as `dtype` (None: as they are).

    `card` has name, kind, licence and config, and whatever else is worth knowing; the entry `files` is made here.
    Tensors are spread, in order, over as many files of at most `max_bytes` as needed. The card is written last, so that
    a package with a card is whole.
    """
    from safetensors.torch import save_file

    tensors = {
        name: value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else None).contiguous()
        for name, value in state.items()
    }
    shards = _shards(tensors, max_bytes)
    stem = str(card["name"])
    entries = []
    for index, names in enumerate(shards):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{index + 1}-of-{len(shards)}.safetensors"
        with atomic_path(folder / file) as temporary:
            save_file({name: tensors[name].clone() for name in names}, temporary, metadata={"card": CARD_FILE})
        written = folder / file
        entries.append({"file": file, "bytes": written.stat().st_size, "sha256": file_sha256(written)})
    write_json(folder / CARD_FILE, {**card, "files": entries})
    return read_card(folder)


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names in order, split where the next tensor would not fit; the header takes up to 256 bytes a tensor."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + 256
        if size > max_bytes:
            raise ValueError(f"{name} alone takes {size} bytes, more than a file may have ({max_bytes})")
        if used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def read_tensors(card: Card) -> dict[str, Tensor]:
    """All tensors of a package, each file verified first: present, whole, and the one that the card describes.

    UserError naming the file and what differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for entry in card.values["files"]:
        path = verify_file(card, entry)
        try:
            tensors.update(load_file(path))
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from None
    return tensors


def verify_file(card: Card, entry: Mapping[str, Any]) -> Path:
    """The file of a package that an entry of its card names. UserError unless it is there and that very one."""
    path = card.path.parent / Path(entry["file"]).name
    if not path.is_file():
        raise UserError(f"the weights of {card.name!r} are not complete: {path} is missing")
    size = path.stat().st_size
    if size < entry["bytes"]:
        raise UserError(f"{path} is truncated: it has {size} of {entry['bytes']} bytes; copy it again")
    found = file_sha256(path)
    if found != entry["sha256"]:
        raise UserError(
            f"{path} is not the file that {card.path.name} describes: its sha256 is {found[:12]}..., expected "
            f"{str(entry['sha256'])[:12]}...; it is damaged or belongs to another model"
        )
    return path


def load_parts(parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Fill modules with the tensors under their names ("network." ...), strictly. UserError naming what differs."""
    expected = {
        f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()
    }
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise UserError(
            f"the weights at {source} are of another model: {_count(missing, 'lacks', source)}"
            f"{' and ' if missing and unknown else ''}{_count(unknown, 'has unknown', source)}"
        )
    wrong = [name for name, tensor in expected.items() if tensor.shape != tensors[name].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"the weights at {source} are of another size of this model: {name} is {list(tensors[name].shape)}, "
            f"its card's configuration needs {list(expected[name].shape)} ({len(wrong)} tensors differ)"
        )
    for part, module in parts.items():
        module.load_state_dict({name: tensors[f"{part}.{name}"] for name in module.state_dict()})


def _count(names: Sequence[str], verb: str, source: Path) -> str:
    if not names:
        return ""
    return f"it {verb} {len(names)} tensors such as {names[0]!r}"


def parse_config(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """A (nested) frozen dataclass from plain data, strictly: UserError for unknown settings and for wrong types."""
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{where} has unknown settings: {', '.join(unknown)}; is it of a newer version?")
    try:
        return kind(**{name: _parse(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is not a valid configuration: {error}") from None


def _is_config(kind: type) -> bool:
    return dataclasses.is_dataclass(kind)


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        named = {str(choice.__name__): choice for choice in choices if isinstance(choice, type) and _is_config(choice)}
        if named and isinstance(value, Mapping):
            # Settings name the class where a field's type alone does not.
            chosen = value.get("kind")
            if chosen not in named:
                raise UserError(f"{where}.kind is one of {', '.join(named)}, got {chosen!r}")
            return _parse(named[chosen], {key: item for key, item in value.items() if key != "kind"}, where)
        return _parse(choices[0], value, where)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_parse(item, entry, where) for entry in value)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where} is one of {', '.join(map(str, typing.get_args(hint)))}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return parse_config(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not (isinstance(value, hint) and isinstance(value, bool) == (hint is bool)):
        raise UserError(f"{where} is of type {hint.__name__}, got {value!r}")
    return value
