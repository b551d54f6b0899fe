"""Which objects a command line means, and what they are called."""

from __future__ import annotations

import pytest
from object_files import write_index

from maquette.errors import UserError
from maquette.training.objects import find_objects


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_a_folder_holds_every_mesh_below_it(tmp_path):
    touch(tmp_path, "b.glb", "a.obj", "a.mtl", "deep/er/c.PLY", "notes.txt", ".hidden.glb")
    found = find_objects([tmp_path])
    assert [(item.name, item.path) for item in found] == [
        ("a", tmp_path / "a.obj"),
        ("b", tmp_path / "b.glb"),
        ("deep__er__c", tmp_path / "deep/er/c.PLY"),
    ]


def test_an_index_says_which_objects_count_and_what_they_are(tmp_path):
    touch(tmp_path, "x.glb", "y.glb")
    write_index(tmp_path, {"id": "wide/chair", "file": "y.glb", "caption": "a chair"}, {"file": "gone.glb"})
    first, second = find_objects([tmp_path])
    assert (first.name, first.path, first.record) == (
        "wide_chair", tmp_path / "y.glb", {"id": "wide/chair", "caption": "a chair"},
    )  # fmt: skip
    assert (second.name, second.path) == ("gone", tmp_path / "gone.glb")


def test_files_of_one_name_are_told_apart_by_suffix(tmp_path):
    touch(tmp_path, "chair.glb", "Chair.obj", "table.glb")
    assert [item.name for item in find_objects([tmp_path])] == ["Chair-obj", "chair-glb", "table"]


def test_objects_that_cannot_be_told_apart_are_refused(tmp_path):
    touch(tmp_path, "one/chair.glb", "two/chair.glb")
    with pytest.raises(UserError, match="both be called 'chair-glb'"):
        find_objects([tmp_path / "one", tmp_path / "two"])
    assert len(find_objects([tmp_path])) == 2


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("absent.glb", "no object at"), ("notes.txt", "is not an object"), ("empty", "holds no objects")],
)
def test_paths_without_objects_are_refused(tmp_path, name, complaint):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=complaint):
        find_objects([tmp_path / name])


def test_an_unreadable_index_is_named_with_its_line(tmp_path):
    (tmp_path / "index.jsonl").write_text('{"file": "a.glb"}\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"index.jsonl, line 2"):
        find_objects([tmp_path])
