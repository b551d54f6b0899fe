"""A surface held to an outline: nothing beyond it, thin parts that are fog come back, empty rays stay empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maquette.cameras import Cameras, orbit
from maquette.images import Views
from maquette.meshing.extract import extract_mesh, march
from maquette.meshing.outline import held_to_outline
from maquette.rendering.raster import render_mesh

AXIS = torch.linspace(-1, 1, 65)
X, Y, Z = torch.meshgrid(AXIS, AXIS, AXIS, indexing="ij")


def front(size: int = 128) -> Cameras:
    return orbit(1, elevation=5.0, fovy=40.0, height=size, width=size)


def view(mask: torch.Tensor) -> Views:
    return Views(torch.zeros(1, 3, *mask.shape), mask[None, None].float(), front(mask.shape[-1]))


def shadow(heights: np.ndarray, size: int = 128) -> torch.Tensor:
    """What the surface covers, seen from the front."""
    return render_mesh(march(heights), front(size), samples=2).views().masks[0, 0]


def overlap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(torch.minimum(ours, theirs).sum() / torch.maximum(ours, theirs).sum())


def ball(radius: float, skirt: float = 0.2) -> np.ndarray:
    """Positive inside, nothing at all beyond the skirt."""
    return ((radius - (X**2 + Y**2 + Z**2).sqrt()) / skirt).clamp(-1, 1).numpy()


def test_what_lies_beyond_the_outline_goes() -> None:
    mask = shadow(ball(0.35))
    before, after = ball(0.6), held_to_outline(ball(0.6), view(mask))
    assert overlap(shadow(before), mask) < 0.5
    assert overlap(shadow(after), mask) > 0.93
    assert (after <= before).all(), "a solid that covers the outline is only cut"


def test_fog_that_the_outline_asks_for_becomes_solid() -> None:
    rod = 0.75 * (((Y.abs() < 0.6) & (Z.abs() < 0.06)).float() * torch.exp(-((X / 0.2) ** 2))) - 1.0
    heights = np.maximum(ball(0.25), rod.numpy())  # the rod's middle is at -0.25: outside
    wanted = torch.maximum(shadow(ball(0.25)), shadow(((rod + 1.0) - 0.3).numpy()))
    assert float(shadow(heights)[64, :30].sum()) == 0
    held = held_to_outline(heights, view(wanted))
    assert overlap(shadow(held), wanted) > 0.8
    inside = torch.from_numpy(held) > 0
    assert X[inside & (Y.abs() > 0.4)].abs().max() < 0.25, "only the densest part of the fog is taken"


def test_an_empty_ray_stays_empty() -> None:
    mask = torch.zeros(128, 128)
    mask[20:110, 20:110] = 1.0
    held = held_to_outline(ball(0.3, 0.03), view(mask))
    assert overlap(shadow(held), shadow(ball(0.3, 0.03))) > 0.8, "there was a skirt to lift, and no more"
    assert (held[ball(0.3, 0.03) == -1] < 0).all()


def test_a_large_mask_is_averaged_first() -> None:
    small, large = (held_to_outline(ball(0.6), view(shadow(ball(0.35), size))) for size in (128, 512))
    assert np.abs(small - large).max() < 0.5 and np.mean((small > 0) != (large > 0)) < 1e-3


def test_the_extraction_holds_a_density(tmp_path) -> None:
    def density(points: torch.Tensor) -> torch.Tensor:
        return 40.0 * (points.norm(dim=-1) < 0.6)

    mask = shadow(ball(0.35))
    mesh, _ = extract_mesh(density, 64, 10.0, outline=view(mask))
    assert overlap(render_mesh(mesh, front(), samples=2).views().masks[0, 0], mask) > 0.93
    with pytest.raises(ValueError, match="only a density"):
        extract_mesh(lambda p: p.norm(dim=-1) - 0.6, 64, inside="below", outline=view(mask))


def test_an_outline_is_one_view_with_a_mask() -> None:
    with pytest.raises(ValueError, match="empty space would become solid"):
        held_to_outline(ball(0.3), view(torch.zeros(128, 128)), nothing=-0.9)
    with pytest.raises(ValueError, match="one view with a mask"):
        held_to_outline(ball(0.3), Views(torch.zeros(1, 3, 128, 128), None, front()))
