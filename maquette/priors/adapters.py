"""What a prior learned about one subject, kept apart from the prior: low-rank updates, or new values of its weights.

An `Adapter` is a value: tensors with the names of the parameters that they are, and the fingerprint of the weights
that they belong to. `attach` makes networks that show it, sharing every other parameter with the networks given, so
that a base model and any number of its adapters live in the memory of one, side by side. That is why this is not a
library that switches adapters on and off inside a module: partial and full model are used in one breath.

Low rank (LoRA, arXiv:2106.09685): y = W x + scale * up (down x), with `up` zero at the start, so that nothing changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.run.fingerprints import fingerprint
from maquette.run.settings import plain
from maquette.run.state import read_state, write_state

FILE = "adapter.safetensors"
DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the attention's projections."""

    rank: int = 4
    """Rank of every update; 16 and more for 3D, since low ranks miss geometry."""
    scale: float = 1.0
    """Factor on the updates (alpha / rank elsewhere)."""
    targets: tuple[str, ...] = tuple(
        f"{attention}.{layer}"
        for attention in ("self_attention", "cross_attention")
        for layer in ("to_q", "to_k", "to_v", "to_out")
    )
    """Linear layers of the score network that get one, by the last parts of their names."""
    text_encoder: bool = False
    """Whether the text encoder learns too."""
    text_targets: tuple[str, ...] = ("qkv", "out", "to_qkv", "to_out")
    """Linear layers of the text encoder that get one."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"an adapter has a rank of at least 1, got {self.rank}")


@dataclass(frozen=True)
class Full:
    """New values for all weights of the score network."""

    text_encoder: bool = False
    """Whether the text encoder learns too."""


AdapterConfig = Lora | Full
_CONFIGS = {"Lora": Lora, "Full": Full}


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was learned: new tensors, by role and name of the parameter ("network.middle...to_q.lora_up")."""

    config: AdapterConfig
    base: str
    """Fingerprint of the weights that it was learned on; it fits no others."""
    tensors: Mapping[str, Tensor]
    steps: int = 0
    """Optimiser steps that it took, all runs that led to it together."""

    def fingerprint(self) -> str:
        """Covers everything that changes a prediction."""
        return fingerprint((self.config, self.base, dict(self.tensors)))

    def save(self, folder: Path) -> None:
        """Write adapter.safetensors, with what it belongs to and the fingerprint that `load` checks."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"kind": type(self.config).__name__, **plain(self.config)}
        tree = {"config": settings, "base": self.base, "steps": self.steps, "fingerprint": self.fingerprint()}
        write_state(folder / FILE, {**tree, "tensors": dict(self.tensors)})

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read what `save` wrote. UserError where it is missing, damaged, or no adapter of this version."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"there is no adapter at {path}")
        tree = read_state(path)
        settings = dict(tree["config"])
        kind = _CONFIGS.get(settings.pop("kind"))
        if kind is None:
            raise UserError(
                f"{path} holds an adapter of another kind than {' or '.join(_CONFIGS)}; is it of a newer version?"
            )
        config = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})
        adapter = cls(config, tree["base"], tree["tensors"], tree["steps"])
        if adapter.fingerprint() != tree["fingerprint"]:
            raise UserError(f"{path} is damaged: its tensors are not those that were saved; make it again")
        return adapter

    def to(self, device: torch.device | str) -> Adapter:
        """The same adapter on another device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


class LoraLinear(nn.Module):
    """A linear layer and its low-rank update."""

    def __init__(self, base: nn.Linear, down: nn.Parameter, up: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_down, self.lora_up = down, up

    def forward(self, x: Tensor) -> Tensor:
        # The update is small beside W x, so it keeps its own precision until the sum.
        update = F.linear(F.linear(x.to(self.lora_down.dtype), self.lora_down), self.lora_up)
        return self.base(x) + (self.scale * update).to(x.dtype)


def new_adapter(
    networks: Mapping[str, nn.Module], base: str, config: AdapterConfig, generator: torch.Generator
) -> Adapter:
    """An adapter that changes nothing yet: `up` zero and `down` N(0, 1 / rank^2), or copies of all weights.

    Its tensors are float32 wherever the networks are half, since that is what can be trained. ValueError where the
    networks have none of the layers that `config` names.
    """
    roles = ("network", "text_encoder") if config.text_encoder else ("network",)
    tensors: dict[str, Tensor] = {}
    for role in roles:
        if role not in networks:
            raise ValueError(f"this prior has no {role} that could learn; it has {', '.join(networks)}")
        if isinstance(config, Full):
            for name, parameter in networks[role].named_parameters():
                tensors[f"{role}.{name}"] = parameter.detach().float().clone()
            continue
        targets = config.targets if role == "network" else config.text_targets
        found = list(_linears(networks[role], targets))
        if not found:
            raise ValueError(f"the {role} has no linear layers named like any of {', '.join(targets)}")
        for name, linear in found:
            down = torch.randn(config.rank, linear.in_features, generator=generator, device=generator.device)
            weight = linear.weight
            tensors[f"{role}.{name}.{DOWN}"] = (down / config.rank).to(weight.device)
            tensors[f"{role}.{name}.{UP}"] = weight.new_zeros(linear.out_features, config.rank, dtype=torch.float32)
    return Adapter(config, base, tensors)


def _linears(module: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear) and f".{name}".endswith(tuple(f".{target}" for target in targets)):
            yield name, child


def attach(networks: Mapping[str, nn.Module], base: str, adapter: Adapter) -> dict[str, nn.Module]:
    """The networks with an adapter, under the same roles; its tensors are parameters under their own names.

    The given networks stay as they are; what the adapter does not replace is the same parameter in both. A tensor that
    is a parameter already is used itself, so that an optimiser's view and the network's are one; other new weights take
    the precision of those that they replace. UserError where the adapter belongs to other weights.
    """
    if adapter.base != base:
        raise UserError(
            f"this adapter was learned on other weights ({adapter.base[:12]}...) than the prior's ({base[:12]}...); "
            "use the prior that it was made with"
        )
    adapted = dict(networks)
    own: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        role, _, parameter = name.partition(".")
        if role not in networks:
            raise ValueError(f"the adapter changes a {role}, which this prior does not have")
        own.setdefault(role, {})[parameter] = tensor
    for role, tensors in own.items():
        module = networks[role]
        device = next(module.parameters()).device
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        if isinstance(adapter.config, Lora):
            adapted[role] = _with_lora(module, tensors, adapter.config.scale)
        else:
            old = {name: module.get_parameter(name) for name in tensors}
            new = {id(old[name]): _parameter(tensor, old[name].dtype) for name, tensor in tensors.items()}
            adapted[role] = _sharing(module, new)
    return adapted


def _with_lora(module: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> nn.Module:
    shared = _sharing(module, {})
    for name in (name.removesuffix(f".{DOWN}") for name in tensors if name.endswith(f".{DOWN}")):
        parent, _, leaf = name.rpartition(".")
        linear = shared.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # an adapter of the same weights has the same layers
        down, up = _parameter(tensors[f"{name}.{DOWN}"]), _parameter(tensors[f"{name}.{UP}"])
        setattr(shared.get_submodule(parent), leaf, LoraLinear(linear, down, up, scale))
    return shared.eval()


def _parameter(tensor: Tensor, dtype: torch.dtype | None = None) -> nn.Parameter:
    """The tensor as a frozen parameter around the same memory (large networks have no room for a copy)."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().to(dtype), requires_grad=False)


def _sharing(module: nn.Module, new: Mapping[int, nn.Parameter]) -> nn.Module:
    """A copy of a module's structure around the same tensors, apart from those that `new` replaces by their id."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, {**kept, **new})


def parameters_of(networks: Mapping[str, nn.Module], adapter: Adapter) -> dict[str, nn.Parameter]:
    """The adapter's tensors as they stand in networks that `attach` made, by their names in the adapter."""
    found = {}
    for name in adapter.tensors:
        role, _, parameter = name.partition(".")
        found[name] = networks[role].get_parameter(parameter)
    return found
