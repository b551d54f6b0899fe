"""The answers that need no prior."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from maquette.cameras import orbit
from maquette.evaluation.baselines import NearestObjects, billboard, copy_views, lathe, read_index
from maquette.evaluation.image import mask_iou
from maquette.evaluation.truth import Truth
from maquette.images import ImagePrompt
from maquette.rendering.raster import render_mesh
from tests.evaluation.conftest import OBJECTS


def prompt_of(name, protocol):
    return Truth.of(OBJECTS[name], protocol, 0, name).prompt


@pytest.mark.parametrize("baseline", [billboard, lathe])
@pytest.mark.parametrize("name", ["tower", "drum"])
def test_from_the_front_both_have_the_prompts_outline_and_colour(baseline, name, protocol):
    prompt = prompt_of(name, protocol)
    mesh = baseline(prompt, protocol)
    # They take the prompt for a picture from elevation 0.
    seen = render_mesh(mesh, protocol.circle(1, 0.0, 96)).views()
    # The solid's near rim, which perspective enlarges, is what separates the lathe's outline from the prompt's.
    assert float(mask_iou(seen.masks[0], prompt.mask)) > (0.9 if baseline is billboard else 0.85)
    inside = (seen.masks[0, 0] > 0.99) & (prompt.mask[0] > 0.99)
    assert (seen.images[0] - prompt.image)[:, inside].abs().mean() < 0.02


def test_the_card_is_flat_and_the_lathe_is_solid_and_round(protocol):
    prompt = prompt_of("drum", protocol)
    card, solid = billboard(prompt, protocol), lathe(prompt, protocol)
    assert np.ptp(card.vertices[:, 0]) == 0
    assert solid.is_watertight
    width, depth = np.ptp(solid.vertices[:, 1]), np.ptp(solid.vertices[:, 0])
    assert depth == pytest.approx(width, rel=0.01)


def test_the_lathe_is_nearly_right_about_a_drum(protocol):
    truth = Truth.of(OBJECTS["drum"], protocol, 0, "drum")
    figures, flat = truth.score(lathe(truth.prompt, protocol)), truth.score(billboard(truth.prompt, protocol))
    # Perspective makes the near rim look higher, so the solid comes out a little tall.
    assert figures["volume_iou"] > 0.7 > 0.2 > flat["volume_iou"]
    assert figures["silhouette_iou"] > 0.8 and figures["chamfer"] < flat["chamfer"] / 2


def test_the_lathe_bridges_rows_without_pixels(protocol):
    mask = torch.zeros(1, 96, 96)
    mask[:, 20:40, 30:60], mask[:, 60:80, 40:50] = 1, 1
    solid = lathe(ImagePrompt(torch.full((3, 96, 96), 0.5), mask), protocol)
    assert solid.is_watertight and np.isfinite(solid.vertices).all()


def test_an_empty_mask_is_refused(protocol):
    empty = ImagePrompt(torch.zeros(3, 32, 32), torch.zeros(1, 32, 32))
    for baseline in (billboard, lathe):
        with pytest.raises(ValueError, match="mask is empty"):
            baseline(empty, protocol)


def test_every_view_of_a_copy_is_the_prompt(protocol):
    prompt = prompt_of("tower", protocol)
    views = copy_views(prompt, orbit(4, height=48, width=48))
    assert len(views) == 4
    for k in range(4):
        torch.testing.assert_close(views.images[k], prompt.resized(48).image)


def test_the_nearest_object_is_found_and_remembered(objects_folder, protocol, tmp_path):
    calls = []
    found = NearestObjects.of(objects_folder, protocol, cache=tmp_path, report=lambda *at: calls.append(at))
    assert len(calls) == 4 and found.skipped == ()
    for name in OBJECTS:
        prompt = prompt_of(name, protocol)
        assert found.nearest(prompt).stem == name
        assert np.linalg.norm(found.reconstruct(prompt).mesh.vertices, axis=1).max() == pytest.approx(0.75, rel=1e-5)
    again = NearestObjects.of(objects_folder, protocol, cache=tmp_path, report=lambda *at: calls.append(at))
    assert len(calls) == 4 and again.files == found.files
    np.testing.assert_array_equal(again.features, found.features)


def test_broken_training_objects_are_skipped_and_named(objects_folder, protocol, tmp_path):
    folder = tmp_path / "objects"
    shutil.copytree(objects_folder, folder)
    (folder / "plank.glb").write_bytes(b"not a model")
    found = NearestObjects.of(folder, protocol)
    assert found.skipped == ("plank.glb",) and len(found.files) == 3


def test_an_index_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(ValueError, match=r"no index\.jsonl"):
        read_index(tmp_path)
    (tmp_path / "index.jsonl").write_text('{"id": "a", "file": "a.glb"}\n{"id": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_index(tmp_path)
    (tmp_path / "index.jsonl").write_text('{"id": "a", "file": "a.glb"}\n{"id"\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_index(tmp_path)
    rows = [{"id": "a", "file": "a.glb"}]
    (tmp_path / "index.jsonl").write_text(json.dumps(rows[0]) + "\n\n")
    assert read_index(tmp_path) == rows
