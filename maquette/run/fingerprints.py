"""What a value is, as a short text: equal values have equal fingerprints, in every process and on every machine.

A stage is skipped when the fingerprint of its inputs is the one that its saved result was made from, so a fingerprint
must cover everything that can change a result, and nothing else. What cannot be described faithfully is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import struct
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def fingerprint(value: object) -> str:
    """SHA-256 (hex) over a canonical description of `value`.

    Understood: None, bool, int, float, complex, str, bytes, enums, dtypes and devices; tuples, lists, sets and
    mappings of such; numpy arrays and tensors (dtype, shape and bytes, wherever they live); paths (the content of the
    file or folder, not its name); functions, classes and `functools.partial` (by their qualified name); dataclasses
    (class and every field that is not declared `compare=False`); modules (class, public attributes and state); and
    any object with a method `fingerprint() -> str`, which goes before all other rules. Raises ValueError for others.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def qualified_name(item: Any) -> str:
    """`module:qualname` of a function or class."""
    return f"{item.__module__}:{item.__qualname__}"


def file_sha256(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    own = getattr(value, "fingerprint", None)
    if callable(own) and not isinstance(value, type):
        _token(digest, "own", qualified_name(type(value)).encode(), str(own()).encode())
    elif isinstance(value, enum.Enum):
        _token(digest, "enum", qualified_name(type(value)).encode(), value.name.encode())
    elif isinstance(value, (type(None), bool, int, str, torch.dtype, torch.device)):
        _token(digest, type(value).__name__, str(value).encode("utf-8", "surrogatepass"))
    elif isinstance(value, float):
        _token(digest, "float", struct.pack("<d", value))
    elif isinstance(value, complex):
        _token(digest, "complex", struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, (bytes, bytearray)):
        _token(digest, "bytes", bytes(value))
    elif isinstance(value, torch.Tensor):
        _feed_tensor(digest, value)
    elif isinstance(value, (np.ndarray, np.generic)):
        if value.dtype == object:
            raise ValueError("A numpy array of objects has no fingerprint; pass a list instead.")
        array = np.ascontiguousarray(value)
        _token(digest, "array", f"{array.dtype.str}{array.shape}".encode(), array.tobytes())
    elif isinstance(value, Path):
        _feed_path(digest, value)
    elif isinstance(value, torch.nn.Module):
        _feed_module(digest, value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.compare]
        _token(digest, "dataclass", qualified_name(type(value)).encode(), str(len(fields)).encode())
        for name in fields:
            _token(digest, "field", name.encode())
            _feed(digest, getattr(value, name))
    elif isinstance(value, (tuple, list)):
        _token(digest, type(value).__name__, str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, Mapping):
        _token(digest, "mapping", str(len(value)).encode())
        for key, item in sorted(((fingerprint(key), item) for key, item in value.items()), key=lambda pair: pair[0]):
            _token(digest, "key", key.encode())
            _feed(digest, item)
    elif isinstance(value, (set, frozenset)):
        _token(digest, "set", *(f.encode() for f in sorted(fingerprint(item) for item in value)))
    elif isinstance(value, functools.partial):
        _token(digest, "partial")
        _feed(digest, (value.func, value.args, dict(value.keywords)))
    elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        if "<lambda>" in value.__qualname__ or "<locals>" in value.__qualname__:
            raise ValueError(
                f"{qualified_name(value)} has no lasting name, so a saved result cannot be tied to it; define it at "
                f"the top level of a module (functools.partial may fix some of its arguments)."
            )
        _token(digest, "name", qualified_name(value).encode())
    elif isinstance(value, types.MethodType):
        _token(digest, "method", value.__name__.encode())
        _feed(digest, value.__self__)
    else:
        raise ValueError(
            f"{qualified_name(type(value))} has no fingerprint; make it a dataclass, or give it a method "
            f"`fingerprint() -> str` that covers everything its results depend on."
        )


def _token(digest: Any, kind: str, *parts: bytes | memoryview) -> None:
    """Feed a kind and its parts with their lengths, so that no two sequences of tokens read alike."""
    for part in (kind.encode(), *parts):
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)


def _feed_tensor(digest: Any, value: torch.Tensor) -> None:
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 1:
        flat = flat.clone(memory_format=torch.contiguous_format)  # one element may have any stride, an expanded one 0
    raw = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    _token(digest, "tensor", f"{value.dtype}{tuple(value.shape)}".encode(), raw)


def _feed_path(digest: Any, path: Path) -> None:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        _token(digest, "folder", *(p.relative_to(path).as_posix().encode() for p in files))
        for file in files:
            _feed_path(digest, file)
        return
    if not path.is_file():
        raise ValueError(f"{path} does not exist, so it has no fingerprint.")
    _token(digest, "file", bytes.fromhex(file_sha256(path)))


def _feed_module(digest: Any, module: torch.nn.Module) -> None:
    """Class, public attributes and state of `module` and its children; `training` is left out, as it is momentary."""
    for name, child in module.named_modules():
        _token(digest, "module", name.encode(), qualified_name(type(child)).encode())
        for key, item in sorted(vars(child).items()):
            if not key.startswith("_") and key != "training":
                _token(digest, "attribute", key.encode())
                _feed(digest, item)
    for key, tensor in sorted(module.state_dict().items()):
        _token(digest, "state", key.encode())
        _feed(digest, tensor)
