"""`maquette render` on the command line: what is broken is skipped, and nothing at all is no success."""

from __future__ import annotations

from cubes import textured_cube

from maquette import cli
from maquette.asset import Asset

FEW = "--size 16 --samples 1 --canonical.num-views 1 --free.num-views 0 --workers 1".split()


def test_a_broken_object_is_skipped_and_broken_ones_alone_are_a_mistake(tmp_path, capsys):
    (tmp_path / "broken.glb").write_bytes(b"no model")
    words = ["render", str(tmp_path / "broken.glb")]
    options = ["--out", str(tmp_path / "renders"), *FEW]
    assert cli.main([*words, *options]) == 2
    error = capsys.readouterr().err
    assert "skipped broken: " in error and "none of the 1 objects can be rendered; see index.jsonl in" in error
    Asset(textured_cube()).save(tmp_path / "cube.glb")
    assert cli.main([*words, str(tmp_path / "cube.glb"), *options]) == 0
    told = capsys.readouterr()
    assert "skipped broken: " in told.err and "1 objects rendered (1 pictures), 0 there already, 1 skipped" in told.out


def test_objects_must_be_named(capsys):
    assert cli.main(["render"]) == 2
    assert "OBJECTS... is missing" in capsys.readouterr().err
