"""The prompt's camera is found again, and its picture lands where that camera sees the object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maquette.asset import Mesh
from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.errors import UserError
from maquette.images import ImagePrompt
from maquette.rendering.base import Rendering, Scene, Shot
from maquette.rendering.raster import MeshRenderer
from maquette.run import Run
from maquette.stages.locate import LocateConfig, Located, bounding_box, compare, crop, into_frame, locate_prompt


class MeshScene(Scene):
    """A scene that shows a mesh, so that the search is tested without a fit."""

    def __init__(self, mesh: Mesh) -> None:
        self.renderer = MeshRenderer(mesh)

    def render(self, shot: Shot, generator: torch.Generator | None = None) -> Rendering:
        seen = self.renderer.render(shot.cameras, samples=4, want=frozenset({"rgb"}))
        background = torch.zeros(3) if shot.background is None else shot.background
        return Rendering(
            seen.composite(background), seen.opacity, torch.zeros_like(seen.opacity), background.expand_as(seen.rgb)
        )

    def fingerprint(self) -> str:
        return "mesh"

    # The rest of `Scene`, of which a search has no use.
    def update(self, step: int, total: int, generator: torch.Generator) -> None: ...

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        return {}

    def total_variation(self) -> torch.Tensor:
        return torch.zeros(())

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None: ...

    def save(self, folder: Path) -> None: ...


def chair() -> Mesh:
    """A seat with one armrest and a back, each side of its own colour: no two azimuths look alike."""
    import trimesh

    parts = []
    for extents, place, colour in (
        ((0.8, 0.7, 0.15), (0.0, 0.0, 0.0), (0.8, 0.2, 0.2)),
        ((0.12, 0.7, 0.7), (-0.34, 0.0, 0.4), (0.2, 0.6, 0.3)),
        ((0.5, 0.1, 0.3), (0.1, 0.3, 0.2), (0.2, 0.3, 0.9)),
    ):
        box = trimesh.creation.box(extents)
        box.apply_translation(place)
        parts.append((np.asarray(box.vertices), np.asarray(box.faces), np.tile(colour, (len(box.vertices), 1))))
    offsets = np.cumsum([0] + [len(vertices) for vertices, _, _ in parts])[:-1]
    return Mesh(
        np.concatenate([vertices for vertices, _, _ in parts]),
        np.concatenate([faces + offset for (_, faces, _), offset in zip(parts, offsets, strict=True)]),
        vertex_colors=np.concatenate([colours for _, _, colours in parts]),
    ).normalized()


def photograph(mesh: Mesh, azimuth: float, elevation: float, size: int = 128) -> ImagePrompt:
    """The mesh from a camera of the fits' field of view, cropped to 80 % of its side as `read_prompt` does."""
    seen = MeshRenderer(mesh).render(camera(azimuth, elevation, size), samples=4)
    rgba = seen.rgba[0].movedim(-1, 0)
    cropped = crop(rgba[None], size)[0]
    return ImagePrompt((cropped[:3] / cropped[3:].clamp_min(1e-3)).clamp(0, 1), cropped[3:].clamp(0, 1))


def camera(azimuth: float, elevation: float, size: int) -> Cameras:
    values = (torch.tensor([v]) for v in (azimuth, elevation, fit_distance(40.0), 40.0))
    return from_angles(*values, height=size, width=size)


@pytest.mark.parametrize(("azimuth", "elevation"), [(35.0, 15.0), (-62.0, 31.0)])
def test_the_camera_is_found(azimuth: float, elevation: float, tmp_path: Path) -> None:
    mesh = chair()
    with Run.open(tmp_path / "run", config={}, seed=0, device="cpu", quiet=True) as run:
        found: Located = run.stage(
            "locate", locate_prompt, MeshScene(mesh), photograph(mesh, azimuth, elevation), None, LocateConfig()
        )
        again = Located.load(tmp_path / "run" / "stages" / "locate" / "result")
    estimate = found.estimate
    assert abs((estimate.azimuth - azimuth + 180) % 360 - 180) < 6
    assert abs(estimate.elevation - elevation) < 6
    assert estimate.reliable and estimate.error < 0.12
    assert again.estimate == estimate and again.colour_error == found.colour_error
    truth = MeshRenderer(mesh).render(found.view.cameras, samples=4)
    overlap = torch.minimum(truth.opacity[0, ..., 0], found.view.masks[0, 0]).sum() / truth.opacity.sum()
    assert overlap > 0.9, "the prompt does not lie on what its camera sees"


def test_a_known_elevation_is_kept(tmp_path: Path) -> None:
    mesh = chair()
    with Run.open(tmp_path / "run", config={}, seed=0, device="cpu", quiet=True) as run:
        found: Located = run.stage(
            "locate", locate_prompt, MeshScene(mesh), photograph(mesh, 20.0, 40.0), 25.0, LocateConfig()
        )
    assert found.estimate.elevation == 25.0


def test_another_object_is_not_believed(tmp_path: Path) -> None:
    mask = torch.zeros(1, 128, 128)
    mask[:, 60:68, 13:115] = 1.0
    mask[:, 13:115, 60:68] = 1.0
    cross = ImagePrompt(torch.full((3, 128, 128), 0.9), mask)
    with Run.open(tmp_path / "run", config={}, seed=0, device="cpu", quiet=True) as run:
        found: Located = run.stage("locate", locate_prompt, MeshScene(chair()), cross, None, LocateConfig())
    assert not found.estimate.reliable


def test_crops_forget_scale_and_place() -> None:
    small, large = torch.zeros(4, 64, 64), torch.zeros(4, 128, 128)
    small[:, 10:22, 40:48] = 1.0
    large[:, 30:78, 20:52] = 1.0
    overlap, difference = compare(crop(small[None]), crop(large[None])[0])
    assert float(overlap[0]) > 0.9 and float(difference[0]) < 0.02
    assert bounding_box(small[3]) == (44.0, 16.0, 12.0)


def test_into_frame_maps_box_onto_box() -> None:
    image = torch.zeros(3, 100, 100)
    mask = torch.zeros(1, 100, 100)
    mask[:, 20:80, 30:70] = 1.0
    seen = torch.zeros(4, 64, 64)
    seen[3, 8:38, 40:60] = 1.0
    moved, scale = into_frame(ImagePrompt(image, mask), seen)
    x, y, side = bounding_box(moved[3])
    assert (x, y) == pytest.approx((50.0, 23.0), abs=1.0) and side == pytest.approx(30.0, abs=1.0)
    assert scale == pytest.approx((60 / 100) / (30 / 64), rel=1e-6)


def test_a_search_needs_candidates() -> None:
    with pytest.raises(UserError, match="4 azimuths"):
        LocateConfig(azimuths=2)
