"""Saving, averaging and precision of networks in training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_weights(
    path: Path, model: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write a state dict as safetensors, atomically: a reader sees the old file or the new one, never half of one."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {
        name: tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else None).contiguous().clone()
        for name, tensor in state.items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata=dict(metadata))
    os.replace(temporary, path)


def bf16_pays(device: str) -> bool:
    """Whether bfloat16 arithmetic is fast here: CUDA, or a CPU with instructions for it (28x slower on others)."""
    if device.startswith("cuda"):
        return True
    has_instructions = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device == "cpu" and torch.backends.mkldnn.is_available() and bool(has_instructions)


def autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where it pays, nothing elsewhere."""
    kind = device.split(":")[0]
    if bf16_pays(device):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return contextlib.nullcontext()


class Average:
    """Exponential moving average of a model's parameters with a warm-up: decay = min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.state[name].copy_(tensor)


def save_state(path: Path, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Model, average and Adam moments in one safetensors file (no pickle), with the step in its metadata."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state.items()}
    state = optimiser.state_dict()["state"]
    for index, entries in state.items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    save_weights(path, tensors, {"step": str(step), "updates": str(average.updates)})


def load_state(path: Path, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer) -> int:
    """Restore what `save_state` wrote and return the step."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    for name, value in part("average.").items():
        average.state[name].copy_(value)
    average.updates = int(metadata["updates"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimiser.").items():
        index, entry = name.split(".", 1)
        moments.setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(metadata["step"])


def saved_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights in a file that `save_state` wrote."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("average.")]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix("average."): file.get_tensor(name) for name in names}
