"""Published parameter names and ours: a key table per network and layout, applied strictly in both directions.

A table is data: for each of our parameters the published one or ones it comes from, and how they are stored. It is
built from a network's config, so it is complete by construction, and a file that misses a name, has one too many, or
has another shape is refused with the names listed. The tables themselves live in one module per layout
(`layout_ldm`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from maquette.priors.tensor_files import TensorFile

Form = Literal["same", "transposed", "pointwise"]
"""How a published tensor is stored: like ours, as its transpose, or as the 1x1 convolution of our matrix."""


@dataclass(frozen=True)
class Entry:
    """One parameter of ours, and the published tensors whose concatenation along axis 0 it is (nearly always one)."""

    ours: str
    published: tuple[str, ...]
    form: Form = "same"

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Our tensor from published ones."""
        parts = [self._convert(tensors[name], inverse=False) for name in self.published]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        """Published tensors from ours."""
        parts = tensor.chunk(len(self.published)) if len(self.published) > 1 else (tensor,)
        return {name: self._convert(part, inverse=True) for name, part in zip(self.published, parts, strict=True)}

    def _convert(self, tensor: Tensor, inverse: bool) -> Tensor:
        if self.form == "transposed":
            return tensor.T
        if self.form == "pointwise":
            return tensor[..., None, None] if inverse else tensor.flatten(1)
        return tensor


@dataclass(frozen=True)
class KeyTable:
    """All parameters of one network, and which published names beside them may be left alone."""

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    """Regular expressions of published names that carry nothing we need."""

    def __post_init__(self) -> None:
        for side, names in (("ours", self.ours()), ("published", self.published())):
            listed = list(names)
            if len(set(listed)) != len(listed):
                twice = sorted({name for name in listed if listed.count(name) > 1})
                raise ValueError(f"a key table names each parameter once; {side} has these twice: {_some(twice)}")

    def ours(self) -> Iterator[str]:
        """Our names, in order."""
        return (entry.ours for entry in self.entries)

    def published(self) -> Iterator[str]:
        """Published names, in order."""
        return (name for entry in self.entries for name in entry.published)

    def read(
        self, tensors: Mapping[str, Tensor], prefix: str = "", source: str = "the checkpoint"
    ) -> dict[str, Tensor]:
        """Our state dict from the published tensors whose names begin with `prefix`; other names are not looked at.

        Strict: raises ValueError naming what is missing and what is unknown. `source` names the file in the message.
        """
        mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        known = set(self.published())
        missing = [name for name in self.published() if name not in mine]
        extra = [n for n in mine if n not in known and not any(re.fullmatch(p, n) for p in self.ignored)]
        if missing or extra:
            facts = [f"lacks {len(missing)} tensors ({_some(missing)})"] if missing else []
            facts += [f"has {len(extra)} unknown ones ({_some(extra)})"] if extra else []
            where = f" under {prefix!r}" if prefix else ""
            raise ValueError(f"{source} is not the model it was loaded as: it {' and '.join(facts)}{where}.")
        return {entry.ours: entry.read(mine) for entry in self.entries}

    def write(self, tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """The published state dict from ours, names with `prefix`; ValueError unless `tensors` are exactly ours."""
        missing, extra = sorted(set(self.ours()) - set(tensors)), sorted(set(tensors) - set(self.ours()))
        if missing or extra:
            raise ValueError(
                f"this table does not describe these tensors: missing {_some(missing)}, unknown {_some(extra)}."
            )
        written: dict[str, Tensor] = {}
        for entry in self.entries:
            written |= {prefix + name: tensor for name, tensor in entry.write(tensors[entry.ours]).items()}
        return written

    def under(self, ours: str, published: str) -> KeyTable:
        """The same table for a network that is a part of a larger one on either side."""
        entries = (Entry(ours + e.ours, tuple(published + n for n in e.published), e.form) for e in self.entries)
        return KeyTable(tuple(entries), tuple(re.escape(published) + pattern for pattern in self.ignored))


def load(
    module: nn.Module, tensors: Mapping[str, Tensor], table: KeyTable, prefix: str = "", source: str = "the checkpoint"
) -> None:
    """Fill `module` in place with published tensors.

    ValueError where a name or a shape does not fit; the module is untouched then.
    """
    state = table.read(tensors, prefix, source)
    _check_fit(module, state, source)
    module.load_state_dict(state)


def stream(
    module: nn.Module,
    file: TensorFile,
    table: KeyTable,
    prefix: str = "",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Give `module`, built on the meta device, the tensors of a file, one after the other.

    Names and shapes are compared before anything is read, with a ValueError as in `load`; numbers become `dtype` (none:
    as in the file) on the way. Beside the module itself one tensor is in memory.
    """
    _check_fit(module, table.read(file.outlines(prefix), prefix, str(file.path)), str(file.path))
    state = {}
    for entry in table.entries:
        tensor = entry.read({name: file.tensors[prefix + name].read() for name in entry.published})
        state[entry.ours] = tensor.to(device, dtype if tensor.is_floating_point() else None).contiguous()
    module.load_state_dict(state, assign=True)


def _check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """ValueError unless `state` has exactly the module's names and shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if set(expected) != set(state):
        raise ValueError(
            f"the key table does not describe this network; it differs in {_some(sorted(set(expected) ^ set(state)))}."
        )
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {expected[name]}"
        for name, tensor in state.items()
        if tuple(tensor.shape) != expected[name]
    ]
    if wrong:
        raise ValueError(f"{source} holds another size of this model: {_some(wrong, '; ')}.")


def _some(names: Iterable[str], separator: str = ", ", count: int = 5) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - count} more" if len(listed) > count else ""
    return separator.join(listed[:count]) + rest if listed else "none"
