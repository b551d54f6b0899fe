"""State dicts of published metric networks, from files that cannot execute code."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from maquette.errors import UserError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth/.pt file through torch's restricted loader; UserError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a file of tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{path} does not hold a state dict; expected names and tensors alone")
    return values


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], source: str | Path, ignored: tuple[str, ...] = ()
) -> None:
    """Fill a module with tensors of its own names; UserError naming what is missing, unknown or of another shape.

    Names that begin with one of `ignored` are left alone.
    """
    state = {name: value for name, value in state.items() if not name.startswith(ignored)} if ignored else state
    own = module.state_dict()
    # Counters of training steps are absent from older files and mean nothing here.
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - counters)
    unknown = sorted(state.keys() - own.keys() - {name for name in state if name.endswith("num_batches_tracked")})
    shapes = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes in", shapes)):
        if names:
            raise UserError(f"{source} is of another model: it {what} {len(names)} tensors such as {names[0]!r}")
    module.load_state_dict({name: state.get(name, value) for name, value in own.items()})
