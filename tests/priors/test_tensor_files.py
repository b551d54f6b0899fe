"""Files of tensors: what is in them is read, one at a time; what would run does not; what is damaged is named."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maquette.errors import UserError
from maquette.priors.tensor_files import StoredTensor, open_tensors, write_safetensors, write_torch

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def state() -> dict[str, torch.Tensor]:
    """Every precision, a scalar, nothing at all, and views into a larger tensor."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"a.{d}": (10 * torch.rand(2, 3, generator=generator)).to(d) for d in DTYPES}
    whole = torch.rand(4, 6, generator=generator)
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": whole.T, "row": whole[2],
            "column": whole[:, 1:2]}  # fmt: skip


def assert_same(file, expected):
    assert list(file.tensors) == list(expected)
    for name, tensor in expected.items():
        stored = file.tensors[name]
        assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape)), name
        assert torch.equal(stored.read(), tensor), name


def stored(tensors):
    return [(name, StoredTensor(t.dtype, tuple(t.shape), lambda t=t: t)) for name, t in tensors.items()]


def test_what_torch_saves_is_read(tmp_path):
    torch.save(state(), tmp_path / "plain.pt")
    assert_same(open_tensors(tmp_path / "plain.pt"), state())
    wrapped = {"state_dict": {**state(), "note": "hello"}, "epoch": 3, "callbacks": {"a": [1, 2]}}
    torch.save(wrapped, tmp_path / "wrapped.ckpt")
    file = open_tensors(tmp_path / "wrapped.ckpt")
    assert_same(file, state())
    assert file.kind == "torch" and file.others == ("note", "epoch", "callbacks")
    module = torch.nn.Linear(3, 2)
    torch.save(dict(module.named_parameters()), tmp_path / "parameters.bin")
    assert_same(open_tensors(tmp_path / "parameters.bin"), dict(module.named_parameters()))


def test_what_is_written_torch_and_safetensors_read(tmp_path):
    expected = {name: tensor.contiguous() for name, tensor in state().items()}
    write_torch(tmp_path / "a.pt", stored(state()))
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(loaded) == list(expected) and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None
    assert_same(open_tensors(tmp_path / "a.pt"), expected)
    write_safetensors(tmp_path / "a.safetensors", stored(state()), {"from": "here"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], expected[name]) for name in expected) and len(loaded) == len(expected)
    assert_same(open_tensors(tmp_path / "a.safetensors"), expected)
    write_torch(tmp_path / "b.pt", stored(state()))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_safetensors_of_others_are_read(tmp_path):
    expected = {name: tensor.contiguous().clone() for name, tensor in state().items()}
    save_file(expected, tmp_path / "a.safetensors", metadata={"format": "pt"})
    file = open_tensors(tmp_path / "a.safetensors")
    assert file.kind == "safetensors" and file.dtypes()["float16"] == 1
    for name, tensor in expected.items():
        assert torch.equal(file.tensors[name].read(), tensor)
    outlines = file.outlines("a.")
    assert len(outlines) == len(DTYPES) and all(outline.is_meta for outline in outlines.values())


class Bomb:
    """Touches a file when it is unpickled by somebody who trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path):
    mark = tmp_path / "boom"
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": Bomb(mark)}, tmp_path / "bomb.ckpt")
    file = open_tensors(tmp_path / "bomb.ckpt")
    assert file.tensors["w"].read().tolist() == [1, 1] and file.others == ("hyper_parameters",)
    assert not mark.exists()
    torch.load(tmp_path / "bomb.ckpt", weights_only=False)
    assert mark.exists()  # the file would have


class Trainer:
    """Any object that a training framework might leave in its files."""

    def __init__(self) -> None:
        self.values, self.inner = [1, 2], {"x": torch.ones(1)}


class Listing(list):
    pass


class Table(dict):
    pass


def test_objects_of_trainers_are_passed_over(tmp_path):
    left = {"trainer": Trainer(), "listing": Listing([1, 2]), "table": Table(a=1), "class": Trainer,
            "device": torch.device("cpu"), "dtype": torch.float16, "size": torch.Size([2])}  # fmt: skip
    torch.save({"state_dict": {"w": torch.ones(2)}, **left}, tmp_path / "a.ckpt")
    file = open_tensors(tmp_path / "a.ckpt")
    assert list(file.tensors) == ["w"] and file.others == tuple(left)


def test_one_tensor_at_a_time(tmp_path):
    """Looking takes no memory to speak of, reading that of one tensor, writing too."""
    size = 1 << 18
    made = StoredTensor(torch.float32, (size,), lambda: torch.ones(size))
    tracemalloc.start()
    write_torch(tmp_path / "a.pt", [(f"t{i}", made) for i in range(40)])
    write_safetensors(tmp_path / "a.safetensors", [(f"t{i}", made) for i in range(40)], {})
    for name in ("a.pt", "a.safetensors"):
        assert len(open_tensors(tmp_path / name).tensors) == 40
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.pt").stat().st_size > 40 * 4 * size
    assert peak < 4 * 4 * size


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    (write_torch if suffix == ".pt" else lambda p, t: write_safetensors(p, t, {}))(path, stored(state()))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=rf"a\{suffix} is not (a )?(whole|file of weights)"):
        open_tensors(path)


def test_other_files_are_refused(tmp_path):
    def refused(match, name, data):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=match):
            open_tensors(tmp_path / name)

    refused("neither safetensors nor", "a.ckpt", b"<html>not found</html>")
    refused("not a whole safetensors file", "a.safetensors", b"<html>not found</html>")
    refused("older than 1.6", "old.pt", pickle.dumps({"w": 1}, protocol=2))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("readme", "hello")
    refused("zip archive without tensors", "z.pt", (tmp_path / "z.zip").read_bytes())
    with pytest.raises(UserError, match=r"no file of weights at .*nowhere"):
        open_tensors(tmp_path / "nowhere")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="does not hold named tensors"):
        open_tensors(tmp_path / "list.pt")


def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path):
    write_torch(tmp_path / "a.pt", stored({"w": torch.ones(5)}))
    data = (tmp_path / "a.pt").read_bytes()
    # The pickle's K\x05 are the size of the storage and the shape; the shape alone is made larger.
    start = data.index(b"_rebuild_tensor_v2")
    last = data.rindex(b"K\x05", start, data.index(b"archive/byteorder"))
    (tmp_path / "a.pt").write_bytes(data[: last + 1] + b"\x07" + data[last + 2 :])
    with pytest.raises(UserError, match=r"a\.pt (is damaged|is not whole)"):
        open_tensors(tmp_path / "a.pt")
