"""Light on points, against recorded numbers and plain cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maquette.fields.material import lambert_term, shade


@pytest.fixture
def recorded(goldens):
    arrays = np.load(goldens / "metrics/shading_orientation.npz")
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def test_recorded_light(recorded):
    light = recorded["light_position"]
    term = lambert_term(recorded["normals"], recorded["positions"], light)
    torch.testing.assert_close(term[..., 0], recorded["lambert_term"], rtol=1e-9, atol=1e-12)
    for shading, name in (("diffuse", "shaded"), ("textureless", "textureless"), ("albedo", "albedo")):
        found = shade(
            shading,
            recorded["albedo"],
            recorded["normals"],
            recorded["positions"],
            light,
            ambient=recorded["light_ambient"],
            diffuse=recorded["light_diffuse"],
        )
        torch.testing.assert_close(found, recorded[name], rtol=1e-9, atol=1e-12)
        if shading != "albedo":
            same = shade(shading, recorded["albedo"], recorded["normals"], recorded["positions"], light, ambient=0.1)
            torch.testing.assert_close(same, recorded[name], rtol=1e-9, atol=1e-12)


def test_light_from_the_front_from_behind_and_none():
    normal, origin = torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3)
    albedo = torch.tensor([[0.2, 0.4, 0.8]])
    above, below = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, 0.0, -3.0])
    torch.testing.assert_close(shade("diffuse", albedo, normal, origin, above, ambient=0.3), albedo)
    torch.testing.assert_close(shade("diffuse", albedo, normal, origin, below, ambient=0.3), 0.3 * albedo)
    torch.testing.assert_close(shade("textureless", albedo, 0 * normal, origin, above, 0.3), torch.full((1, 3), 0.3))
    assert torch.equal(shade("albedo", albedo), albedo)


def test_light_without_a_place_is_refused():
    with pytest.raises(ValueError, match="needs normal, positions and light"):
        shade("diffuse", torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3))
