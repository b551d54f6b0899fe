"""Files of named tensors, read one tensor at a time: safetensors, and what `torch.save` writes, without running it.

A published checkpoint has 4 to 16 GB. Names, shapes and precisions are read first, so that a wrong file is refused
before any of it is loaded; then each tensor comes from its place in the file, and never more than one of them stands in
memory beside the network that is filled.

`torch.save` writes a zip archive with a pickle of the structure and one plain file a tensor. A pickle can name any
function to be called. Here every name becomes a shell without behaviour, except for the few that stand for a tensor;
what else a trainer left in the file (callbacks, settings, optimiser) is passed over and listed.
"""

from __future__ import annotations

import collections
import io
import json
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from maquette.errors import UserError
from maquette.run.state import DTYPES, write_tensors

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
LARGE = 1 << 20
"""Bytes from which on a tensor is read into pages of its own."""

_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """The tensor itself; each call reads it anew."""

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, none of them loaded."""

    path: Path
    kind: Literal["safetensors", "torch"]
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...] = ()
    """Names of what stood beside the tensors and was passed over."""

    def outlines(self, prefix: str = "") -> dict[str, Tensor]:
        """Tensors without memory, of the right shapes, of all names that begin with `prefix`."""
        return {
            name: torch.empty(stored.shape, dtype=stored.dtype, device="meta")
            for name, stored in self.tensors.items()
            if name.startswith(prefix)
        }

    def dtypes(self) -> dict[str, int]:
        """Precision ("float16") -> number of tensors."""
        return dict(collections.Counter(str(t.dtype).removeprefix("torch.") for t in self.tensors.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.nbytes for stored in self.tensors.values())


def open_tensors(path: Path) -> TensorFile:
    """Look into a file of tensors, whatever its ending. UserError naming the file if it is none, or not whole."""
    if not path.is_file():
        raise UserError(f"there is no file of weights at {path}")
    with open(path, "rb") as file:
        beginning = file.read(4)
    if beginning == b"PK\x03\x04":
        return _open_torch(path)
    if path.suffix == ".safetensors" or path.suffix not in TORCH_SUFFIXES:
        return _open_safetensors(path)
    if beginning[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        raise UserError(
            f"{path} was written by a PyTorch older than 1.6, in a format that can only be read by running it; load it "
            "where you trust it and save it again, as safetensors"
        )
    raise UserError(f"{path} is not a file of weights: it is neither safetensors nor what torch.save writes")


def _open_safetensors(path: Path) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass  # checks the header, and that the file is as long as it says
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy or fetch it again") from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path} holds {name!r} as {entry['dtype']}, which is not supported; convert it first")
        dtype, shape, begin = DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(dtype, shape, _Reader(path, begin, dtype, shape))
    return TensorFile(path, "safetensors", tensors)


@dataclass(frozen=True)
class _Reader:
    """Reads values that lie one after the other in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    """Where the values are not in order; the shape is then seen through it."""
    length: int = 0
    """Values to read where there is a stride."""

    def __call__(self) -> Tensor:
        values = _room(self.length if self.stride is not None else math.prod(self.shape), self.dtype)
        target = values.view(torch.uint8).numpy().data
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            done = 0
            while done < len(target):  # the system reads at most 2 GB at once
                count = file.readinto(target[done:])
                if not count:
                    raise UserError(f"{self.path} ends in the middle of a tensor; copy or fetch it again")
                done += count
        return values.view(self.shape) if self.stride is None else values.as_strided(self.shape, self.stride)


def _room(count: int, dtype: torch.dtype) -> Tensor:
    """An empty vector; a large one in pages of its own, which the system has back as soon as nobody looks at it.

    In the heap, tensors that are read, converted and dropped one after the other leave holes between the converted
    ones: 180 MiB instead of 96 for 24 tensors of 8 MiB that become half precision.
    """
    size = count * dtype.itemsize
    return torch.empty(count, dtype=dtype) if size < LARGE else torch.frombuffer(mmap.mmap(-1, size), dtype=dtype)


# torch.save


@dataclass(frozen=True)
class _Storage:
    """A plain file of values inside the archive."""

    dtype: torch.dtype
    key: str
    size: int


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it: a part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Shell:
    """What any object of a pickle becomes that is no tensor: it takes everything and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Shell:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    if not isinstance(storage, _Storage):
        return _Shell()
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Reads the structure; nothing that the pickle names is ever imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return _Shell

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, size = pid
        return _Storage(dtype, str(key), int(size)) if kind == "storage" and isinstance(dtype, torch.dtype) else None


def _open_torch(path: Path) -> TensorFile:
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            root = next((n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if root is None:
                raise UserError(f"{path} is a zip archive without tensors; give a file that torch.save wrote")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise UserError(f"{path} was written on a machine of other byte order; save it again as safetensors")
            content = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
            places = {
                info.filename.removeprefix(f"{root}data/"): _place(file, info)
                for info in archive.infolist()
                if info.filename.startswith(f"{root}data/")
            }
    except (zipfile.BadZipFile, EOFError, OSError, struct.error) as error:
        raise UserError(f"{path} is not whole ({error}); copy or fetch it again") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} cannot be read as a file of tensors ({type(error).__name__}: {error})") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"{path} does not hold named tensors; expected what torch.save writes for a state dict")
    tensors = {str(name): _stored(path, view, places) for name, view in state.items() if isinstance(view, _View)}
    others = [str(name) for name in state if str(name) not in tensors]
    others += [str(name) for name in content if content is not state and name != "state_dict"]
    return TensorFile(path, "torch", tensors, tuple(others))


def _place(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, int]:
    """(offset, bytes) of an entry's content; it must lie there as it is."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{info.filename} is compressed")
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra, info.file_size


def _stored(path: Path, view: _View, places: Mapping[str, tuple[int, int]]) -> StoredTensor:
    storage = view.storage
    offset, size = places.get(storage.key, (0, -1))
    reach = view.offset + (
        1 + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True)) if math.prod(view.shape) else 0
    )
    if size < storage.size * storage.dtype.itemsize or reach > storage.size or min((0, *view.stride)) < 0:
        raise UserError(f"{path} is damaged: one of its tensors is not where the file says")
    begin = offset + view.offset * storage.dtype.itemsize
    if view.stride == _in_order(view.shape) or math.prod(view.shape) < 2:
        return StoredTensor(storage.dtype, view.shape, _Reader(path, begin, storage.dtype, view.shape))
    reader = _Reader(path, begin, storage.dtype, view.shape, view.stride, reach - view.offset)
    return StoredTensor(storage.dtype, view.shape, reader)


def _in_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of values that lie row by row."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class _Reference:
    """Stands for a tensor while the structure is pickled."""

    def __init__(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.key, self.dtype, self.shape = key, dtype, shape

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        return _rebuild_tensor_v2, (
            _Storage(self.dtype, self.key, math.prod(self.shape)), 0, self.shape, _in_order(self.shape), False,
            collections.OrderedDict(),
        )  # fmt: skip


class _Pickler(pickle.Pickler):
    """Writes storages by name, as `torch.save` does."""

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = next(name for name, dtype in _STORAGES.items() if dtype == value.dtype)
        return "storage", getattr(torch, kind), value.key, "cpu", value.size


def write_torch(path: Path, tensors: Iterable[tuple[str, StoredTensor]]) -> None:
    """Write what `torch.load` reads back as an ordered dict of these tensors, holding one of them at a time.

    The caller makes the write atomic (`maquette.run.files.atomic_path`).
    """
    listed = list(tensors)
    structure = collections.OrderedDict(
        (name, _Reference(str(i), stored.dtype, stored.shape)) for i, (name, stored) in enumerate(listed)
    )
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(structure)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, "archive/data.pkl", pickled.getvalue())
        _write_entry(archive, "archive/byteorder", b"little")
        for i, (_, stored) in enumerate(listed):
            _write_entry(archive, f"archive/data/{i}", _bytes(stored.read()))
        _write_entry(archive, "archive/version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    # A fixed date, so that the same tensors give the same bytes.
    with archive.open(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), "w", force_zip64=len(data) > 1 << 30) as entry:
        entry.write(data)


def write_safetensors(path: Path, tensors: Iterable[tuple[str, StoredTensor]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, holding one tensor at a time."""
    write_tensors(path, [(name, kept.dtype, kept.shape, kept.read) for name, kept in tensors], metadata)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
