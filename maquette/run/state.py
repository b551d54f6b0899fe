"""Trees of tensors and plain values in one safetensors file: checkpoints and stage results, without pickle.

A tree is a tensor, None, bool, int, float, str, or a list, tuple or dictionary of trees. Tensors become the file's
tensors; everything else, and the shape of the tree, is JSON in its metadata. What is read back equals what was written,
with tuples still tuples and integer keys still integers (an optimizer's state has them).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from maquette.errors import UserError
from maquette.run.files import atomic_path

_MARK = "$"


def write_state(path: Path | str, tree: Any) -> None:
    """Write `tree` to the safetensors file `path`, at once or not at all.

    Tensors are copied to the CPU as they are (dtype kept). Raises ValueError for a value that has no place in a tree,
    RunFailed when the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_pack(tree, "", tensors))
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"maquette": skeleton})
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


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
        tensors[key] = tree.detach().cpu().contiguous().clone()  # a copy, as safetensors refuses shared memory
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
