"""Which model a file holds: its names and shapes compared with those of every model that this version knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from maquette.diffusion.clip import CLIP, vit_h14
from maquette.priors import layout_ldm
from maquette.priors.published import MODELS, SCHEDULE, Part, outline, parts
from maquette.priors.single_view import SD15, SD21, ZERO123, ZERO123_MODELS, LdmConfig, ldm_parts
from maquette.priors.tensor_files import TensorFile

AVERAGE = (r"model_ema\..*",)
"""The running average of a U-Net, which loaders prefer where it is."""
CHECKPOINTS: dict[str, LdmConfig] = {
    **dict.fromkeys(ZERO123_MODELS, ZERO123),
    "stable-diffusion-1.5": SD15,
    "stable-diffusion-2.1-base": SD21,
}
"""Models that are published as one checkpoint without multi-view attention."""


@dataclass(frozen=True)
class Match:
    """How a file compares with a model."""

    models: tuple[str, ...]
    """Names of the models that have these tensors; more than one where files cannot be told apart."""
    fitting: int
    """Tensors of the model that the file has, in the right shape."""
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    """Names in the file that the model does not have."""
    resized: tuple[str, ...]
    """Tensors that both have, in different shapes."""
    lacks_towers: bool = False
    """Whether CLIP's towers are left out altogether, which an ImageDream file may do."""

    @property
    def exact(self) -> bool:
        """Whether the file is of this model: nothing missing, nothing of another shape."""
        return not self.missing and not self.resized

    def __str__(self) -> str:
        name = " or ".join(self.models)
        if self.exact and not self.unknown:
            return f"{name}: every tensor has its place"
        facts = [
            f"{verb} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for verb, names in (
                ("lacks", self.missing), ("has in another shape", self.resized), ("has unknown", self.unknown),
            )
            if names
        ]  # fmt: skip
        return f"{name}: {self.fitting} tensors fit; it {' and '.join(facts)}"


def compare(file: TensorFile) -> list[Match]:
    """All known models that share names with a file, the likeliest first."""
    matches = [_match(file, names, candidate) for names, candidate in candidates().items()]
    fitting = [match for match in matches if match.fitting]
    return sorted(fitting, key=lambda match: (-match.exact, len(match.unknown) + len(match.missing), -match.fitting))


def _match(file: TensorFile, names: tuple[str, ...], candidate: _Candidate) -> Match:
    have = {name: stored.shape for name, stored in file.tensors.items()}
    expected = dict(candidate.shapes)
    towers = [name for name in expected if name.startswith("clip_model.")]
    without = bool(towers) and not any(name.startswith("clip_model.") for name in have)
    for name in towers if without else ():
        del expected[name]
    missing = tuple(name for name in expected if name not in have)
    resized = tuple(name for name, shape in expected.items() if name in have and have[name] != shape)
    unknown = tuple(
        name for name in have
        if name not in expected and not any(re.fullmatch(pattern, name) for pattern in candidate.ignored)
    )  # fmt: skip
    fitting = len(expected) - len(missing) - len(resized)
    return Match(names, fitting, missing, unknown, resized, without)


@dataclass(frozen=True)
class _Candidate:
    shapes: Mapping[str, tuple[int, ...]]
    ignored: tuple[str, ...]


@cache
def candidates() -> dict[tuple[str, ...], _Candidate]:
    """What each model's file holds, by the models' names; those whose files cannot be told apart are one entry."""
    found: dict[tuple[str, ...], _Candidate] = {}
    for name, candidate in _each():
        same = next((names for names, other in found.items() if other.shapes == candidate.shapes), None)
        if same is None:
            found[(name,)] = candidate
        else:
            found[(*same, name)] = found.pop(same)
    return found


def _each() -> Iterator[tuple[str, _Candidate]]:
    for name, config in MODELS.items():
        yield name, _candidate(parts(config()).values(), SCHEDULE)
    made: dict[LdmConfig, _Candidate] = {}
    for name, ldm in CHECKPOINTS.items():
        if ldm not in made:
            made[ldm] = _candidate(ldm_parts(ldm).values(), SCHEDULE, AVERAGE)
        yield name, made[ldm]
    vision, text = vit_h14()
    towers = Part("", layout_ldm.openclip(vision, text), lambda: CLIP(vision, text))
    yield "clip-vit-h14", _candidate([towers], ())


def _candidate(listed: Iterable[Part], beside: tuple[str, ...], patterns: tuple[str, ...] = ()) -> _Candidate:
    shapes: dict[str, tuple[int, ...]] = {}
    ignored = [*patterns, *(re.escape(name) for name in beside)]
    for part in listed:
        written = part.table.write(outline(part).state_dict(), part.prefix)
        shapes |= {name: tuple(tensor.shape) for name, tensor in written.items()}
        ignored += [re.escape(part.prefix) + pattern for pattern in part.table.ignored]
    return _Candidate(shapes, tuple(ignored))
