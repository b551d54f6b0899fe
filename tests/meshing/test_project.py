"""Pictures land on the surface they show, only there, and smoothly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import icosphere, position_color

from maquette.asset import Mesh
from maquette.cameras import Cameras, orbit
from maquette.images import Views
from maquette.meshing.bake import bake_texture
from maquette.meshing.project import ProjectionConfig, project_views
from maquette.meshing.raycast import RayCaster, pixel_rays
from maquette.meshing.texels import rasterize_uv
from maquette.meshing.unwrap import box_unwrap

GREY = 0.5


def grey_mesh(mesh: Mesh, size: int = 256) -> Mesh:
    flat = box_unwrap(mesh, texture_size=size)
    return bake_texture(flat, lambda points: torch.full_like(points, GREY), size=size)


def views_of(mesh: Mesh, cameras: Cameras, color, *, masks: bool = True) -> Views:
    """Exact pictures of `mesh` coloured by a function of position, black where it is not."""
    caster = RayCaster(mesh)
    images, covers = [], []
    for camera in cameras:
        origins, directions = pixel_rays(camera)
        hits = caster.first_hits(origins, directions)
        met = hits.face >= 0
        points = origins + np.where(met, hits.distance, 0)[:, None] * directions
        rgb = color(torch.from_numpy(points)).clamp(0, 1) * torch.from_numpy(met)[:, None]
        images.append(rgb.reshape(camera.height, camera.width, 3).permute(2, 0, 1).float())
        covers.append(torch.from_numpy(met.reshape(1, camera.height, camera.width).astype(np.float32)))
    return Views(torch.stack(images), torch.stack(covers) if masks else None, cameras)


def texel_points(mesh: Mesh):
    texels = rasterize_uv(mesh, *mesh.texture.shape[:2])
    values = mesh.texture[texels.row, texels.column].astype(float) / 255
    return texels.interpolate(mesh.vertices, mesh), values


def two_balls() -> Mesh:
    """A small ball before a large one, as seen from +x."""
    near, far = icosphere(0.2, 3), icosphere(0.45, 3)
    return Mesh(
        np.concatenate([near.vertices + [0.6, 0, 0], far.vertices + [-0.3, 0, 0]]),
        np.concatenate([near.faces, far.faces + len(near.vertices)]),
    )


@pytest.mark.parametrize("masks", [True, False])
def test_only_what_the_camera_sees_is_painted(masks):
    mesh = grey_mesh(two_balls())
    camera = orbit(1, height=128, width=128)
    painted = project_views(mesh, views_of(mesh, camera, position_color, masks=masks))
    points, values = texel_points(painted)
    changed = np.abs(values - GREY).max(1) > 0.02
    eye = camera.position[0].numpy()
    caster = RayCaster(mesh)
    towards = eye - points
    visible = ~caster.occluded(
        points + 2e-3 * towards / np.linalg.norm(towards, axis=1, keepdims=True), np.broadcast_to(eye, points.shape)
    )
    assert changed.any() and visible[changed].mean() > 0.999
    # The far ball in the shadow of the near one, and everything's back, keep the base colour to the bit.
    shadow = ~visible
    assert shadow.sum() > 1000
    assert (np.abs(values[shadow] - round(GREY * 255) / 255).max(1) == 0).mean() > 0.999
    # What is seen squarely has the picture's colour.
    centre = np.array([0.6, 0, 0])
    squarely = (np.linalg.norm(points - centre, axis=1) < 0.21) & (points[:, 0] > 0.74)
    assert np.abs(values[squarely] - (points[squarely] + 1) / 2).max() < 0.02


def test_occluding_edges_do_not_bleed_onto_what_lies_behind():
    mesh = grey_mesh(two_balls())

    def color(points):
        near = (points - torch.tensor([0.6, 0.0, 0.0])).norm(dim=-1, keepdim=True) < 0.25
        return torch.where(near, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))

    painted = project_views(mesh, views_of(mesh, orbit(1, height=96, width=96), color))
    points, values = texel_points(painted)
    far = np.linalg.norm(points - [-0.3, 0, 0], axis=1) < 0.46
    assert values[far][:, 0].max() < GREY + 0.03
    assert values[~far][:, 2].max() < GREY + 0.03
    assert (values[far][:, 2] > 0.9).any() and (values[~far][:, 0] > 0.9).any()


def test_a_ring_of_views_covers_the_sides_and_refining_brings_renderings_closer():
    mesh = grey_mesh(icosphere(0.7, 4))

    def stripes(points):
        return 0.5 + 0.4 * torch.sin(points * torch.tensor([7.0, 9.0, 13.0]))

    cameras = orbit(4, elevation=5.0, height=96, width=96)
    views = views_of(mesh, cameras, stripes)

    def error(painted: Mesh) -> float:
        caster = RayCaster(painted)
        errors = []
        for camera, image, mask in zip(cameras, views.images, views.masks, strict=True):
            hits = caster.first_hits(*pixel_rays(camera))
            inside = (mask[0].numpy() > 0.5).reshape(-1) & (hits.face >= 0)
            rgb = painted.sample_color(hits.face[inside], hits.barycentric[inside])[:, :3]
            errors.append(np.abs(rgb - image.permute(1, 2, 0).reshape(-1, 3).numpy()[inside]).mean())
        return float(np.mean(errors))

    once = project_views(mesh, views)
    refined = project_views(mesh, views, config=ProjectionConfig(refine_steps=4))
    assert error(mesh) > 0.2
    assert error(once) < 0.04
    assert error(refined) < 0.75 * error(once)


def test_weights_choose_between_views_and_zero_means_absent():
    mesh = grey_mesh(icosphere(0.7, 3))
    cameras = orbit(2, span=20.0, height=64, width=64)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    views = views_of(mesh, cameras, lambda points: torch.ones_like(points))
    views = replace(
        views, images=torch.stack([red.view(3, 1, 1) * views.masks[0], blue.view(3, 1, 1) * views.masks[1]])
    )
    points, both = texel_points(project_views(mesh, views))
    front = points[:, 0] > 0.55
    assert both[front][:, 0].max() > 0.6 and both[front][:, 2].max() > 0.6
    _, first = texel_points(project_views(mesh, views, [1.0, 0.0]))
    assert first[front][:, 2].max() <= GREY + 0.01 and first[front][:, 0].max() == 1
    _, half = texel_points(project_views(mesh, views, [0.5, 0.0]))
    middle = np.argmin(np.linalg.norm(points - [0.7, 0, 0], axis=1))
    assert half[middle] == pytest.approx([0.75, 0.25, 0.25], abs=0.01)


def test_paint_fades_instead_of_ending():
    mesh = grey_mesh(icosphere(0.7, 4))
    views = views_of(mesh, orbit(1, height=128, width=128), lambda points: torch.ones_like(points))
    points, values = texel_points(project_views(mesh, views))
    # Along the equator from the front to the side the paint falls from white to grey without a jump.
    equator = (np.abs(points[:, 2]) < 0.02) & (points[:, 1] > 0)
    angle = np.degrees(np.arctan2(points[equator, 1], points[equator, 0]))
    order = np.argsort(angle)
    level = values[equator][order][:, 0]
    assert level[angle[order] < 30].min() > 0.99 and np.abs(level[angle[order] > 80] - GREY).max() < 0.01
    means = [level[np.abs(angle[order] - a) < 2].mean() for a in range(30, 80, 2)]
    assert np.max(np.abs(np.diff(means))) < 0.2


def test_pictures_finer_than_the_texture_are_averaged_not_sampled():
    mesh = grey_mesh(icosphere(0.7, 3), size=64)
    cameras = orbit(1, height=512, width=512)
    views = views_of(mesh, cameras, lambda points: torch.ones_like(points))
    checker = ((torch.arange(512)[:, None] + torch.arange(512)[None]) % 2).float().expand(3, -1, -1)
    points, values = texel_points(project_views(mesh, replace(views, images=(checker * views.masks[0])[None])))
    front = points[:, 0] > 0.6
    assert np.abs(values[front] - 0.5).max() < 0.06


def test_a_mask_keeps_the_background_off_the_surface():
    mesh = grey_mesh(icosphere(0.7, 3))
    cameras = orbit(1, height=128, width=128)
    views = views_of(mesh, cameras, lambda points: torch.ones_like(points))
    # The picture's object is smaller than the mesh: a black background lies where the mesh's rim is seen.
    small = views_of(grey_mesh(icosphere(0.5, 3)), cameras, lambda points: torch.ones_like(points))
    _, values = texel_points(project_views(mesh, small))
    assert values.min() > GREY - 0.01
    _, spoiled = texel_points(project_views(mesh, replace(small, masks=views.masks)))
    assert spoiled.min() < 0.2  # so the mask is what made the difference


def test_wrong_callers_are_told_what_to_pass():
    plain = icosphere()
    views = views_of(plain, orbit(2, height=16, width=16), position_color)
    with pytest.raises(ValueError, match="bake it first"):
        project_views(plain, views)
    with pytest.raises(ValueError, match=r"2 numbers in \[0, 1\]"):
        project_views(grey_mesh(plain, 64), views, [1.0])
    with pytest.raises(ValueError, match=r"2 numbers in \[0, 1\]"):
        project_views(grey_mesh(plain, 64), views, [2.0, 1.0])
