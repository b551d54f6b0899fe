"""Trees of tensors and plain values in one safetensors file: checkpoints and stage results, without pickle.

A tree is a tensor, None, bool, int, float, str, or a list, tuple or dictionary of trees. Tensors become the file's
tensors; everything else, and the shape of the tree, is JSON in its metadata. What is read back equals what was written,
with tuples still tuples and integer keys still integers (an optimizer's state has them).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maquette.errors import UserError
from maquette.run.files import atomic_path

_MARK = "$"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Precisions by their names in a safetensors file."""


def write_state(path: Path | str, tree: Any) -> None:
    """Write `tree` to the safetensors file `path`, at once or not at all.

    Tensors are written as they are (dtype kept), one after the other, so that ten gigabytes of them take no second ten.
    Raises ValueError for a value that has no place in a tree, RunFailed when the disk is full.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_pack(tree, "", tensors))
    # The largest numbers first, so that every tensor is aligned in the file, as readers like it.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    listed = [(name, tensors[name].dtype, tuple(tensors[name].shape), tensors[name].cpu) for name in names]
    with atomic_path(path) as temporary:
        write_tensors(temporary, listed, {"maquette": skeleton})


Listed = tuple[str, torch.dtype, tuple[int, ...], Callable[[], torch.Tensor]]
"""Name, precision, shape and values of a tensor."""


def write_tensors(path: Path, listed: Sequence[Listed], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in the order given, holding no more than one tensor beside those that are there."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape, _ in listed:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        for *_, read in listed:
            file.write(read().contiguous().view(-1).view(torch.uint8).numpy().data)


def read_state(path: Path | str, device: torch.device | str = "cpu") -> Any:
    """The tree that `write_state` wrote to `path`; raises UserError when the file is damaged or is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            skeleton = (file.metadata() or {})["maquette"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
            return _unpack(json.loads(skeleton), tensors)
    except (SafetensorError, KeyError) as error:
        raise UserError(
            f"{path} is damaged or was not written by maquette ({error}); delete it, or start anew with --overwrite."
        ) from error


def _pack(tree: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        key = name or "value"
        while key in tensors:  # {1: ..., "1": ...} is a legal dictionary
            key += "'"
        tensors[key] = tree.detach()
        return {_MARK: "tensor", "key": key}
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return {_MARK: "float", "hex": tree.hex()}  # exact, and JSON has neither NaN nor infinity
    if isinstance(tree, (list, tuple)):
        items = [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(tree)]
        return items if isinstance(tree, list) else {_MARK: "tuple", "items": items}
    if isinstance(tree, dict):
        if not all(isinstance(key, (str, int)) for key in tree):
            raise ValueError(f"The keys of a saved dictionary must be text or integers, got {list(tree)!r}.")
        pairs = [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in tree.items()]
        return {_MARK: "dict", "items": pairs}
    raise ValueError(
        f"{type(tree).__name__} at {name or 'the top'} cannot be saved; a tree holds tensors, numbers, text, None, "
        f"lists, tuples and dictionaries."
    )


def _unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node[_MARK]
    if kind == "tensor":
        return tensors[node["key"]]
    if kind == "float":
        return float.fromhex(node["hex"])
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in node["items"])
    return {key: _unpack(item, tensors) for key, item in node["items"]}
