"""Pictures of meshes obey geometry: discs, planes, spheres, labelled cubes, textures, light and transparency."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from maquette.asset import Mesh, Tile, load_mesh
from maquette.cameras import Cameras, fit_distance, from_angles, look_at, orbit
from maquette.rendering import raster
from maquette.rendering.lighting import Light, Lighting, random_lighting, studio
from maquette.rendering.raster import MeshRenderer, render_mesh

EVERYTHING = frozenset({"rgb", "depth", "normal"})
DARK = Lighting(ambient=0.0, lights=())


def mesh(vertices, faces, **kwargs) -> Mesh:
    """A mesh from arrays or lists of any precision."""
    floats = {
        name: np.asarray(kwargs.pop(name), np.float32) for name in ("uv", "normals") if kwargs.get(name) is not None
    }
    return Mesh(np.asarray(vertices, np.float32), np.asarray(faces, np.int64).reshape(-1, 3), **floats, **kwargs)


def sphere(radius: float = 0.75, *, smooth: bool = True) -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=5, radius=1.0)
    unit = np.asarray(ball.vertices) / np.linalg.norm(ball.vertices, axis=1, keepdims=True)
    return mesh(radius * unit, np.asarray(ball.faces), normals=unit if smooth else None)


def quad(corners: list[list[float]], **kwargs) -> Mesh:
    """Corners upper left, upper right, lower right, lower left of the texture."""
    uv = [[0, 0], [1, 0], [1, 1], [0, 1]] if "texture" in kwargs else None
    return mesh(np.array(corners), np.array([[0, 3, 2], [0, 2, 1]]), uv=uv, **kwargs)


def front_quad(x: float = 0.0, half: float = 0.5, **kwargs) -> Mesh:
    """A square across the x axis that a camera at azimuth 0 sees straight on (its image right is +y)."""
    return quad([[x, -half, half], [x, half, half], [x, half, -half], [x, -half, -half]], **kwargs)


def join(first: Mesh, second: Mesh) -> Mesh:
    """Two meshes with one tile each, the textures side by side."""
    texture = np.concatenate([first.texture, second.texture], axis=1)
    a, b = first.tiles[0], second.tiles[0]
    moved = Tile(first.texture.shape[1], b.y, b.width, b.height, alpha=b.alpha, cutoff=b.cutoff)
    return mesh(
        np.concatenate([first.vertices, second.vertices]),
        np.concatenate([first.faces, second.faces + len(first.vertices)]),
        uv=np.concatenate([first.uv, second.uv]),
        texture=texture,
        tiles=(a, moved),
        face_tile=np.repeat([0, 1], [len(first.faces), len(second.faces)]),
    )


def paint(*rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.uint8)


def front(size: int = 64, fovy: float = 40.0) -> Cameras:
    return orbit(1, height=size, width=size, fovy=fovy)


def test_silhouette_of_a_sphere_is_the_analytic_disc():
    size, fovy = 128, 50.0
    cameras = orbit(3, elevation=20.0, fovy=fovy, distance=2.0, height=size, width=size)
    opacity = render_mesh(sphere(), cameras, samples=4).opacity[..., 0]
    radius = math.tan(math.asin(0.75 / 2.0)) / math.tan(math.radians(fovy) / 2) * size / 2
    fine = (torch.arange(size * 8) + 0.5) / 8 - size / 2
    disc = (fine[:, None] ** 2 + fine**2 <= radius**2).float().reshape(size, 8, size, 8).mean((1, 3))
    assert (opacity - disc).abs().max() <= 0.13  # two of sixteen samples, and the sphere has flat faces
    assert torch.allclose(opacity.sum((1, 2)), torch.tensor(math.pi * radius**2), rtol=2e-3)


def test_fit_distance_fills_the_image_height_as_promised():
    opacity = render_mesh(sphere(), front(200)).opacity[0, ..., 0]
    rows = (opacity.sum(1) > 0).sum().item()
    assert abs(rows - 0.8 * 200) <= 2


def test_depth_is_the_distance_along_the_ray_to_a_plane():
    plane = mesh(
        np.array([[-9.0, -9, -0.2], [9, -9, -0.2], [9, 9, -0.2], [-9, 9, -0.2]]), np.array([[0, 1, 2], [0, 2, 3]])
    )
    camera = from_angles(*(torch.tensor([v]) for v in (30.0, 60.0, 2.0, 45.0)), height=40, width=56)
    depth = render_mesh(plane, camera, want=EVERYTHING).depth
    assert depth is not None
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(56) + 0.5, indexing="ij")
    slope = math.tan(math.radians(45.0) / 2)
    local = torch.stack([(columns - 28) / 20 * slope, (20 - rows) / 20 * slope, -torch.ones(40, 56)], dim=-1)
    directions = torch.nn.functional.normalize(local, dim=-1) @ camera.c2w[0, :3, :3].T
    expected = (-0.2 - camera.position[0, 2]) / directions[..., 2]
    assert torch.allclose(depth[0, ..., 0], expected, atol=1e-5)


def test_depth_and_projection_agree(generator):
    cameras = orbit(5, elevation=35.0, height=48, width=32)
    rendering = render_mesh(sphere(), cameras, want=EVERYTHING)
    assert rendering.depth is not None
    view, row, column = (rendering.depth[..., 0] > 0).nonzero(as_tuple=True)
    assert len(view) > 1000
    pixel = torch.stack([column + 0.5, row + 0.5], dim=-1)
    focal = cameras.intrinsics()[view]
    local = torch.stack([(pixel[:, 0] - 16) / focal, (24 - pixel[:, 1]) / focal, -torch.ones(len(view))], dim=-1)
    directions = torch.einsum("nij,nj->ni", cameras.c2w[view, :3, :3], torch.nn.functional.normalize(local, dim=-1))
    points = cameras.position[view] + rendering.depth[view, row, column] * directions
    assert torch.allclose(points.norm(dim=-1), torch.tensor(0.75), atol=2e-3)
    for k in range(5):
        projected, _ = cameras[k].project(points[view == k])
        assert torch.allclose(projected, pixel[view == k], atol=1e-3)


@pytest.mark.parametrize("smooth", [True, False])
def test_normals_of_a_sphere_point_from_its_centre(smooth):
    rendering = render_mesh(sphere(smooth=smooth), orbit(2, elevation=30.0, height=64, width=64), want=EVERYTHING)
    depth, normal, cameras = rendering.depth, rendering.normal, rendering.cameras
    assert depth is not None and normal is not None
    hit = depth[..., 0] > 0
    assert torch.allclose(normal[hit].norm(dim=-1), torch.ones(int(hit.sum())), atol=1e-5)
    assert (normal[~hit] == 0).all()
    for k in range(2):
        pixel = hit[k].nonzero()
        towards = torch.stack(
            [pixel[:, 1] + 0.5 - 32, 32 - pixel[:, 0] - 0.5, -cameras.intrinsics()[k].expand(len(pixel))], -1
        )
        directions = torch.nn.functional.normalize(towards, dim=-1) @ cameras.c2w[k, :3, :3].T
        points = cameras.position[k] + depth[k][hit[k]] * directions
        cosine = (normal[k][hit[k]] * torch.nn.functional.normalize(points, dim=-1)).sum(-1)
        assert cosine.min() > math.cos(math.radians(0.5 if smooth else 4.0))


def labelled_cube(path) -> None:
    """A glTF cube written by another library: +Z red, +X green, -Z blue, -X yellow, +Y white, -Y black."""
    import trimesh
    from PIL import Image

    colors = {
        (0, 0, 1): "red",
        (1, 0, 0): "lime",
        (0, 0, -1): "blue",
        (-1, 0, 0): "yellow",
        (0, 1, 0): "white",
        (0, -1, 0): "black",
    }
    box = trimesh.creation.box((2.0, 2.0, 2.0))
    order = list(colors)
    face = [order.index(tuple(np.round(n).astype(int))) for n in box.face_normals]
    palette = Image.new("RGB", (6, 1))
    for column, name in enumerate(colors.values()):
        palette.paste(name, (column, 0, column + 1, 1))
    vertices = box.vertices[box.faces].reshape(-1, 3)
    uv = np.stack([(np.repeat(face, 3) + 0.5) / 6, np.full(36, 0.5)], axis=-1)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=palette)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    trimesh.Trimesh(vertices, np.arange(36).reshape(12, 3), visual=visual, process=False).export(path)


def test_labelled_gltf_cube_shows_each_face_at_its_azimuth(tmp_path):
    labelled_cube(tmp_path / "cube.glb")
    cube = load_mesh(tmp_path / "cube.glb").normalized()
    angles = torch.tensor([[0.0, 0.0], [90, 0], [180, 0], [270, 0], [0, 90], [0, -90]])
    cameras = from_angles(angles[:, 0], angles[:, 1], torch.tensor(2.7), torch.tensor(40.0), height=32, width=32)
    rgb = render_mesh(cube, cameras).rgb
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert torch.allclose(rgb[:, 16, 16], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_azimuth_grows_towards_the_objects_left(tmp_path):
    # Seen from azimuth 45 the front (red) lies left in the image and the face at +y (lime) right.
    labelled_cube(tmp_path / "cube.glb")
    camera = orbit(1, azimuth=45.0, height=64, width=64)
    rgb = render_mesh(load_mesh(tmp_path / "cube.glb").normalized(), camera).rgb[0]
    assert torch.allclose(rgb[32, [24, 40]], torch.tensor([[1.0, 0, 0], [0, 1, 0]]), atol=1e-5)


def test_textures_stand_upright_and_unmirrored():
    texture = paint([(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)])
    rgb = render_mesh(front_quad(texture=texture), front(), texture_filter="nearest").rgb[0]
    upper_left, upper_right, lower_left, lower_right = rgb[24, 24], rgb[24, 40], rgb[40, 24], rgb[40, 40]
    assert upper_left.tolist() == [1, 0, 0] and upper_right.tolist() == [0, 1, 0]
    assert lower_left.tolist() == [0, 0, 1] and lower_right.tolist() == [1, 1, 0]


def test_nearest_keeps_steps_and_bilinear_blends():
    texture = paint([(0, 0, 0), (255, 255, 255)])
    rgb = {
        f: render_mesh(front_quad(texture=texture), front(), texture_filter=f).rgb[0, 32, :, 0]
        for f in ("nearest", "bilinear")
    }
    assert set(rgb["nearest"].tolist()) == {0.0, 1.0}
    middle = rgb["bilinear"][28:37]
    assert (middle[1:] > middle[:-1]).all() and 0.3 < middle[4] < 0.7


def test_opacity_is_the_covered_share_of_each_pixel():
    # A square that reaches ten and a quarter pixels from the middle of the picture.
    camera = front()
    pixel = 2 * math.tan(math.radians(20)) * fit_distance(40.0) / 64
    half = 10.25 * pixel
    opacity = render_mesh(front_quad(half=half), camera, samples=4).opacity[0, ..., 0]
    assert torch.all(opacity[22:42, 22:42] == 1)
    assert torch.allclose(opacity[21, 22:42], torch.tensor(0.25)) and torch.allclose(
        opacity[22:42, 42], torch.tensor(0.25)
    )
    assert opacity[20].sum() == 0 and float(opacity[21, 21]) == pytest.approx(1 / 16)


def test_colours_are_straight_and_spread_beyond_the_object():
    rendering = render_mesh(front_quad(texture=paint([(200, 40, 10)])), orbit(3, azimuth=20.0, elevation=20.0))
    expected = torch.tensor([200, 40, 10]) / 255
    assert torch.allclose(rendering.rgb, expected.expand_as(rendering.rgb), atol=1e-6)
    assert torch.allclose(rendering.composite(torch.ones(3))[:, 0, 0], torch.ones(3, 3))
    views = rendering.views()
    assert views.images.shape == (3, 3, 64, 64) and torch.equal(views.masks[:, 0], rendering.opacity[..., 0])


def checkered_blob() -> Mesh:
    """A bumpy ball with a texture of detail, two plain faces' worth of thin spikes included."""
    ball = sphere(0.5)
    unit = ball.normals
    radius = 0.5 + 0.1 * np.sin(9 * unit[:, 0]) * np.cos(7 * unit[:, 2])
    uv = np.stack(
        [np.arctan2(unit[:, 1], unit[:, 0]) / (2 * np.pi) + 0.5, np.arccos(np.clip(unit[:, 2], -1, 1)) / np.pi], -1
    )
    texture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    spikes = np.array([[0, 0, 0.5], [0.01, 0, 0.9], [0, 0.02, 0.5], [0.5, 0, 0.0], [0.9, 0.01, 0.1], [0.5, 0.02, 0.02]])
    count = len(ball.vertices)
    return mesh(
        np.concatenate([unit * radius[:, None], spikes]),
        np.concatenate([ball.faces, [[count, count + 1, count + 2], [count + 3, count + 4, count + 5]]]),
        uv=np.concatenate([uv, np.full((6, 2), 0.3)]),
        texture=texture,
    )


@pytest.mark.parametrize(("samples", "tolerance"), [(1, 0.0), (2, 4e-4), (3, 4e-4), (4, 4e-4)])
@pytest.mark.parametrize("lit", [False, True])
def test_thrifty_sampling_agrees_with_the_full_grid(samples, tolerance, lit):
    """The slow twin: one ray a pixel in a picture `samples` times larger, averaged."""
    cameras = orbit(3, elevation=20.0, height=48, width=40)
    renderer, lighting = MeshRenderer(checkered_blob()), Lighting() if lit else None
    fast = renderer.render(cameras, samples=samples, lighting=lighting)
    large = renderer.render(cameras.with_size(48 * samples, 40 * samples), samples=1, lighting=lighting)

    def pooled(x):
        return x.reshape(3, 48, samples, 40, samples, -1).mean((2, 4))

    opacity, premultiplied = pooled(large.opacity), pooled(large.opacity * large.rgb)
    assert (fast.opacity - opacity).abs().mean() <= tolerance
    assert (fast.opacity * fast.rgb - premultiplied).abs().mean() <= 10 * tolerance
    assert ((fast.opacity - opacity).abs() > 1.01 / samples).sum() == 0


def test_bands_do_not_show(monkeypatch):
    cameras = orbit(2, elevation=10.0, height=50, width=70)
    renderer = MeshRenderer(checkered_blob())
    whole = renderer.render(cameras, want=EVERYTHING, lighting=studio())
    monkeypatch.setattr(raster, "RAYS_AT_ONCE", 16 * 70 * 3)
    banded = renderer.render(cameras, want=EVERYTHING, lighting=studio())
    assert (whole.opacity - banded.opacity).abs().mean() < 1e-3  # rows beside a band's edge see fewer neighbours
    assert torch.equal(whole.depth, banded.depth) and torch.equal(whole.normal, banded.normal)


def test_light_follows_lamberts_law():
    wall = front_quad(texture=paint([(200, 100, 50)]))
    albedo = torch.tensor([200, 100, 50]) / 255

    def centre(lighting):
        return render_mesh(wall, front(), lighting=lighting).rgb[0, 32, 32]

    assert torch.allclose(centre(None), albedo, atol=1e-6)
    assert torch.allclose(centre(Lighting(ambient=1.0, lights=())), albedo, atol=1e-6)
    assert torch.equal(centre(DARK), torch.zeros(3))
    lamp = Lighting(ambient=0.2, lights=(Light(azimuth=60.0, elevation=0.0, intensity=0.8, color=(1.0, 0.5, 0.0)),))
    assert torch.allclose(centre(lamp), albedo * torch.tensor([0.2 + 0.4, 0.2 + 0.2, 0.2]), atol=1e-5)
    behind = Lighting(ambient=0.2, lights=(Light(azimuth=180.0, elevation=0.0),))
    assert torch.allclose(centre(behind), albedo * 0.2, atol=1e-5)
    glaring = Lighting(ambient=0.5, lights=(Light(0.0, 0.0, intensity=9.0),))
    assert torch.equal(centre(glaring), torch.ones(3))


def test_surfaces_have_two_sides():
    lamp = Lighting(ambient=0.0, lights=(Light(180.0, 0.0, intensity=1.0),))
    rendering = render_mesh(front_quad(), orbit(2), lighting=lamp, want=EVERYTHING)
    assert rendering.normal is not None
    assert torch.allclose(rendering.rgb[1, 32, 32], torch.ones(3), atol=1e-5) and rendering.rgb[0, 32, 32].sum() == 0
    assert torch.allclose(rendering.normal[:, 32, 32, 0], torch.tensor([1.0, -1.0]))


def test_each_camera_has_its_own_light():
    cameras = orbit(3, span=0.0)
    rgb = render_mesh(front_quad(), cameras, lighting=[None, DARK, Lighting(ambient=0.5, lights=())]).rgb
    assert torch.allclose(rgb[:, 32, 32, 0], torch.tensor([1.0, 0.0, 0.5]))
    with pytest.raises(ValueError, match="one for each of 3"):
        render_mesh(front_quad(), cameras, lighting=[None])


def test_textureless_shows_shape_without_colour():
    rgb = render_mesh(front_quad(texture=paint([(9, 0, 0)])), front(), textureless=True, lighting=Lighting(0.5, ())).rgb
    assert torch.allclose(rgb[0, 32, 32], torch.full((3,), 0.5))


def with_alpha(surface: Mesh, alpha: str, cutoff: float = 0.5) -> Mesh:
    height, width = surface.texture.shape[:2]
    return replace(surface, tiles=(Tile(0, 0, width, height, alpha=alpha, cutoff=cutoff),))


def test_glass_blends_with_what_is_behind_it():
    glass = with_alpha(front_quad(0.2, texture=paint([(255, 0, 0, 102)])), "blend")
    wall = front_quad(-0.2, half=0.25, texture=paint([(0, 0, 255, 255)]))
    rendering = render_mesh(join(glass, wall), front(), want=EVERYTHING)
    assert rendering.depth is not None
    assert torch.allclose(rendering.rgb[0, 32, 32], torch.tensor([0.4, 0.0, 0.6]), atol=1e-4)
    assert float(rendering.opacity[0, 32, 32]) == pytest.approx(1.0, abs=1e-4)
    assert float(rendering.opacity[0, 32, 42]) == pytest.approx(0.4, abs=1e-4)  # glass with nothing behind
    assert float(rendering.depth[0, 32, 32]) == pytest.approx(fit_distance(40.0) + 0.2, abs=1e-3)


def test_many_panes_of_glass_fade_what_is_behind_them_by_the_product_of_their_gaps():
    pane = with_alpha(front_quad(0.4, texture=paint([(255, 0, 0, 51)])), "blend")
    count = 6
    vertices = np.concatenate([pane.vertices - [0.1 * k, 0, 0] for k in range(count)]).astype(np.float32)
    faces = np.concatenate([pane.faces + 4 * k for k in range(count)])
    panes = replace(pane, vertices=vertices, faces=faces, uv=np.tile(pane.uv, (count, 1)))
    opacity = render_mesh(panes, from_angles(*torch.tensor([[10.0], [5], [2.7], [40]]), height=64, width=64)).opacity
    assert float(opacity[0, 32, 32]) == pytest.approx(1 - 0.8**count, abs=1e-4)


def test_rays_pass_the_holes_of_a_mask():
    texture = paint([(255, 0, 0, 255), (255, 0, 0, 0)])
    leaf = with_alpha(front_quad(0.2, texture=texture), "mask")
    wall = front_quad(-0.2, texture=paint([(0, 0, 255, 255)]))
    rendering = render_mesh(join(leaf, wall), front(), texture_filter="nearest", want=EVERYTHING)
    assert rendering.depth is not None
    assert rendering.rgb[0, 32, 24].tolist() == [1, 0, 0] and rendering.rgb[0, 32, 40].tolist() == [0, 0, 1]
    near, far = rendering.depth[0, 32, 24], rendering.depth[0, 32, 40]
    assert 0.3 < float(far - near) < 0.5
    assert float(rendering.opacity[0, 32, 32]) == 1


def test_a_camera_inside_sees_the_surface_all_around_and_one_turned_away_sees_nothing():
    inside = orbit(4, distance=0.05, fovy=90.0, height=16, width=16)
    assert torch.all(render_mesh(sphere(), inside).opacity == 1)
    away = Cameras(look_at(torch.tensor([[2.0, 0, 0]]), target=torch.tensor([5.0, 0, 0])), torch.tensor([40.0]), 16, 16)
    rendering = render_mesh(sphere(), away, want=EVERYTHING)
    assert not rendering.opacity.any() and not rendering.rgb.any() and not rendering.depth.any()


def test_batch_axes_are_kept():
    cameras = orbit(6, height=8, width=12).reshape(2, 3)
    rendering = render_mesh(sphere(), cameras, want=EVERYTHING)
    assert rendering.rgba.shape == (2, 3, 8, 12, 4) and rendering.normal.shape == (2, 3, 8, 12, 3)
    assert render_mesh(sphere(), orbit(1, height=8, width=8)[0]).depth is None


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="faces"):
        render_mesh(mesh(np.zeros((3, 3)), np.zeros((0, 3), int)), front())
    with pytest.raises(ValueError, match="finite"):
        render_mesh(mesh(np.array([[0, 0, 0], [1, 0, np.nan], [0, 1, 0]]), np.array([[0, 1, 2]])), front())
    with pytest.raises(ValueError, match="samples"):
        render_mesh(sphere(), front(), samples=0)
    with pytest.raises(ValueError, match="albedo"):
        render_mesh(sphere(), front(), want=frozenset({"albedo"}))
    with pytest.raises(ValueError, match="negative"):
        Lighting(ambient=-1.0)


def test_random_lighting_stays_near_the_viewer_and_keeps_brightness():
    rng = np.random.default_rng(0)
    for azimuth in (0.0, 170.0):
        for _ in range(50):
            lighting = random_lighting(rng, azimuth, lights=(1, 3))
            assert 1 <= len(lighting.lights) <= 3
            assert lighting.ambient + sum(light.intensity for light in lighting.lights) == pytest.approx(1.1)
            assert all(abs(light.azimuth - azimuth) <= 80 and 10 <= light.elevation <= 75 for light in lighting.lights)
            assert all(np.linalg.norm(light.direction) == pytest.approx(1) for light in lighting.lights)
