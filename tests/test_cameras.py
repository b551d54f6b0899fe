"""Cameras obey the laws of docs/conventions.md, agree with the recorded reference, and survive files."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from maquette.cameras import (
    Cameras,
    OrbitSampler,
    from_angles,
    look_at,
    orbit,
    read_transforms,
    write_transforms,
)
from maquette.errors import UserError


def random_cameras(generator: torch.Generator, *batch: int, height: int = 48, width: int = 64) -> Cameras:
    """Cameras anywhere around the origin, in float64."""

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64)

    return from_angles(draw(-180, 180), draw(-85, 85), draw(1.5, 5), draw(20, 80), height=height, width=width)


def pixel_rays(cameras: Cameras) -> torch.Tensor:
    """Directions [*b, H, W, 3] through pixel centres, written out loop by loop as the slow twin of `project`."""
    rays = torch.empty(*cameras.batch_shape, cameras.height, cameras.width, 3, dtype=cameras.dtype)
    focal = 0.5 * cameras.height / torch.tan(torch.deg2rad(cameras.fovy) / 2)
    for row in range(cameras.height):
        for column in range(cameras.width):
            x = (column + 0.5 - cameras.width / 2) / focal
            y = -(row + 0.5 - cameras.height / 2) / focal
            local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
            rays[..., row, column, :] = (cameras.c2w[..., :3, :3] @ local[..., None])[..., 0]
    return rays


# Conventions


def test_the_front_camera_stands_on_plus_x_with_plus_y_at_its_right():
    front = orbit(1, distance=2.0)
    torch.testing.assert_close(front.position, torch.tensor([[2.0, 0.0, 0.0]]))
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(front.c2w[0, :3, :3], expected)
    torch.testing.assert_close(front.forward, torch.tensor([[-1.0, 0.0, 0.0]]))


def test_azimuth_90_stands_on_plus_y_and_elevation_is_up():
    position = orbit(1, azimuth=90, elevation=30, distance=2.0).position[0]
    torch.testing.assert_close(position, torch.tensor([0.0, math.sqrt(3.0), 1.0]))


def test_projection_of_hand_made_points():
    camera = orbit(1, distance=2.0, fovy=90.0, height=100, width=200)
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]])
    pixels, depth = camera.project(points)
    # Focal length 50 px: a unit across at depth 2 is 25 px. +y is to the right, +z up, so towards smaller y in the
    # image.
    expected = torch.tensor([[[100.0, 50.0], [125.0, 50.0], [100.0, 25.0], [100.0, 50.0], [100.0, 50.0]]])
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(depth, torch.tensor([[2.0, 2.0, 2.0, 1.0, -1.0]]))


# Laws


def test_azimuth_elevation_distance_are_recovered(generator):
    azimuth = torch.linspace(-179, 180, 23, dtype=torch.float64)
    elevation = torch.linspace(-89, 89, 23, dtype=torch.float64)
    distance = torch.linspace(0.5, 9, 23, dtype=torch.float64)
    cameras = from_angles(azimuth, elevation, distance, torch.full_like(azimuth, 40.0), height=8, width=8)
    torch.testing.assert_close(cameras.azimuth, azimuth)
    torch.testing.assert_close(cameras.elevation, elevation)
    torch.testing.assert_close(cameras.distance, distance)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
def test_poles_keep_their_azimuth(elevation):
    cameras = orbit(4, azimuth=20, elevation=elevation, distance=2.0)
    torch.testing.assert_close(cameras.azimuth, torch.tensor([20.0, 110.0, -160.0, -70.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(cameras.elevation, torch.full((4,), elevation), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        cameras.position, torch.tensor([[0.0, 0.0, math.copysign(2, elevation)]] * 4), atol=1e-6, rtol=0
    )


def test_look_at_equals_the_orbit_away_from_poles(generator):
    cameras = random_cameras(generator, 50)
    torch.testing.assert_close(look_at(cameras.position), cameras.c2w)


@pytest.mark.parametrize("height", [2.0, -2.0])
def test_look_at_along_up_is_the_orbit_of_azimuth_0(height):
    expected = orbit(1, elevation=math.copysign(90, height), distance=2.0).c2w[0]
    torch.testing.assert_close(look_at(torch.tensor([0.0, 0.0, height])), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("up", [(1.0, 0.0, 0.0), (0.0, -3.0, 0.0), (1.0, 1.0, 1.0), (-0.2, 0.5, 4.0)])
def test_look_at_is_a_rotation_even_along_any_up(up):
    up = torch.tensor(up, dtype=torch.float64)
    rotation = look_at(torch.stack([2 * up, -2 * up, up + torch.tensor([0.3, 0.1, 0.2])]), up=up)[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3, dtype=torch.float64))


def test_look_at_sees_its_target_in_the_centre_and_up_upwards(generator):
    position = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    up = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    cameras = Cameras(look_at(position, target, up), torch.full((20,), 50.0, dtype=torch.float64), 30, 40)
    pixels, depth = cameras.project(torch.stack([target, target + 1e-3 * up], dim=1))
    torch.testing.assert_close(pixels[:, 0], torch.tensor([20.0, 15.0], dtype=torch.float64).expand(20, 2))
    torch.testing.assert_close(depth[:, 0], torch.linalg.vector_norm(target - position, dim=-1))
    assert (pixels[:, 1, 1] < 15).all() and torch.allclose(pixels[:, 1, 0], pixels[:, 0, 0])


def test_look_at_refuses_a_camera_at_its_target():
    with pytest.raises(ValueError, match="away from their target"):
        look_at(torch.zeros(2, 3))


def test_w2c_is_the_inverse(generator):
    cameras = random_cameras(generator, 2, 5)
    torch.testing.assert_close(cameras.w2c, torch.linalg.inv(cameras.c2w))


def test_project_agrees_with_pixel_rays(generator):
    cameras = random_cameras(generator, 3, height=6, width=9)
    rays = pixel_rays(cameras)
    steps = 0.3 + torch.rand(3, 6, 9, 1, generator=generator, dtype=torch.float64)
    pixels, depth = cameras.project((cameras.position[:, None, None] + steps * rays).reshape(3, -1, 3))
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij")
    expected = torch.stack([columns + 0.5, rows + 0.5], dim=-1).reshape(1, -1, 2).expand(3, -1, -1)
    torch.testing.assert_close(pixels, expected.double())
    torch.testing.assert_close(depth, steps.reshape(3, -1))


def test_turning_the_world_and_the_cameras_changes_no_picture(generator):
    cameras = random_cameras(generator, 4)
    points = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64)
    angle = math.radians(37.0)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]], dtype=torch.float64
    )
    turned = cameras.turned(37.0)
    for one, other in zip(turned.project(points @ turn.T), cameras.project(points), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close((turned.azimuth - cameras.azimuth) % 360, torch.full((4,), 37.0, dtype=torch.float64))
    torch.testing.assert_close(turned.elevation, cameras.elevation)
    torch.testing.assert_close(
        cameras.turned(torch.tensor([1.0, 2.0, 3.0, 4.0]))[2:3].c2w, cameras[2:3].turned(3.0).c2w
    )


def test_relative_poses_forget_the_world(generator):
    cameras = random_cameras(generator, 4)
    relative = cameras.relative_to(cameras[0])
    torch.testing.assert_close(relative[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(cameras.turned(61.0).relative_to(cameras.turned(61.0)[0]), relative)
    torch.testing.assert_close(cameras[0].c2w @ relative, cameras.c2w)


def test_resolution_scales_pixels_only(generator):
    cameras = random_cameras(generator, 2)
    points = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    pixels, depth = cameras.project(points)
    doubled = cameras.with_size(2 * cameras.height, 2 * cameras.width)
    torch.testing.assert_close(doubled.project(points)[0], 2 * pixels)
    torch.testing.assert_close(doubled.project(points)[1], depth)
    torch.testing.assert_close(doubled.intrinsics(), 2 * cameras.intrinsics())


def test_projection_is_differentiable_in_angles():
    def pixels(azimuth, elevation, distance, fovy):
        points = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
        return from_angles(azimuth, elevation, distance, fovy, height=8, width=8).project(points)[0]

    arguments = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, 20.0, 3.0, 40.0)]
    assert gradcheck(pixels, arguments)
    position = torch.tensor([[1.0, 0.5, 0.2]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(look_at, [position])


# Batches


def test_reshape_index_and_cat(generator):
    cameras = random_cameras(generator, 2, 6)
    assert cameras.batch_shape == (2, 6) and len(cameras) == 2
    assert cameras.reshape(3, -1).batch_shape == (3, 4)
    torch.testing.assert_close(cameras.reshape(3, -1).reshape(2, 6).c2w, cameras.c2w)
    assert cameras.flatten().batch_shape == (12,)
    torch.testing.assert_close(cameras[1, 2].c2w, cameras.c2w[1, 2])
    torch.testing.assert_close(cameras[..., ::2].c2w, cameras.c2w[:, ::2])
    torch.testing.assert_close(cameras[torch.tensor([1, 0])].fovy, cameras.fovy[[1, 0]])
    torch.testing.assert_close(cameras[cameras.elevation > 0].c2w, cameras.c2w[cameras.elevation > 0])
    torch.testing.assert_close(cameras[None].c2w, cameras.c2w[None])
    torch.testing.assert_close(Cameras.cat([cameras[:1], cameras[1:]]).c2w, cameras.c2w)
    assert [camera.batch_shape for camera in cameras] == [(6,), (6,)]
    with pytest.raises(IndexError):
        cameras[2]
    with pytest.raises(TypeError, match="no length"):
        len(cameras[0, 0])


def test_dtype_and_flatten_of_a_single_camera():
    camera = orbit(1)[0]
    assert camera.flatten().batch_shape == (1,)
    assert camera.to(torch.float64).dtype == torch.float64
    assert camera.project(torch.zeros(3, 3))[0].shape == (3, 2)


def test_cat_refuses_several_sizes_and_none():
    with pytest.raises(ValueError, match="one image size"):
        Cameras.cat([orbit(1), orbit(1, height=32)])
    with pytest.raises(ValueError, match="at least one"):
        Cameras.cat([])


def test_shapes_are_checked():
    # Under the shape checker of the test suite the annotation answers before our own check does.
    with pytest.raises((ValueError, TypeError), match="fovy"):
        Cameras(torch.eye(4), torch.tensor([40.0]), 8, 8)
    with pytest.raises(ValueError, match="at least one pixel"):
        Cameras(torch.eye(4), torch.tensor(40.0), 0, 8)


# Orbits


def test_orbit_spreads_views_over_its_span():
    torch.testing.assert_close(
        orbit(4).azimuth.remainder(360), torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        orbit(3, azimuth=10, span=90).azimuth, torch.tensor([10.0, 40.0, 70.0]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("fovy", [20.0, 40.0, 90.0])
def test_fit_distance_fills_the_height_with_the_sphere(fovy):
    camera = orbit(1, fovy=fovy, height=1000, width=1000).to(torch.float64)
    # The silhouette of the sphere of radius 0.75 is where rays graze it: the highest projected point of its surface.
    angle = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)
    profile = 0.75 * torch.stack([torch.cos(angle), torch.zeros_like(angle), torch.sin(angle)], dim=-1)
    rows = camera.project(profile[None])[0][0, :, 1]
    assert float(rows.max() - rows.min()) == pytest.approx(800, abs=0.01)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"num_views": 0}, "view"),
        ({"elevation": 91}, "elevation"),
        ({"distance": -1}, "distance"),
        ({"fovy": 0}, "fovy"),
    ],
)
def test_orbit_names_the_impossible(arguments, word):
    with pytest.raises(UserError, match=word):
        orbit(**arguments)


# The sampler


def test_sampled_scenes_share_what_they_should(generator):
    sampler = OrbitSampler(elevation=(-10, 45), fovy=(30, 60), relative_distance=(0.6, 0.85), azimuth=(-30, 30))
    cameras = sampler.sample(200, 32, 48, generator)
    assert cameras.batch_shape == (200, 4) and (cameras.height, cameras.width) == (32, 48)
    for shared in (cameras.elevation, cameras.fovy, cameras.distance):
        torch.testing.assert_close(shared, shared[:, :1].expand_as(shared), atol=2e-3, rtol=1e-5)
    turns = (cameras.azimuth - cameras.azimuth[:, :1]).remainder(360)
    torch.testing.assert_close(turns, torch.tensor([0.0, 90.0, 180.0, 270.0]).expand(200, 4), atol=1e-2, rtol=0)
    assert cameras.azimuth[:, 0].abs().max() <= 30.01
    assert -10.01 <= cameras.elevation.min() < -5 and 40 < cameras.elevation.max() <= 45.01
    relative = cameras.distance * torch.tan(torch.deg2rad(cameras.fovy) / 2)
    assert 0.5999 <= relative.min() < 0.63 and 0.82 < relative.max() <= 0.8501


def test_plain_distances_replace_relative_ones(generator):
    distance = OrbitSampler(distance=(2.0, 3.0)).sample(50, 8, 8, generator).distance
    assert 1.999 <= distance.min() < 2.2 and 2.8 < distance.max() <= 3.001


def test_area_uniform_elevations_have_uniform_sines(generator):
    sampler = OrbitSampler(elevation=(0, 80), area_uniform_probability=1.0, num_views=1)
    elevation = sampler.sample(20_000, 4, 4, generator).elevation[:, 0]
    sine = torch.sin(torch.deg2rad(elevation))
    uniform = torch.linspace(0, math.sin(math.radians(80)), 20_000)
    # Kolmogorov-Smirnov distance; 1.63 / sqrt(n) = 0.0115 is its 1 % bound.
    assert ((sine.sort().values - uniform).abs().max() / uniform[-1]) < 0.0115


def test_degree_uniform_elevations(generator):
    sampler = OrbitSampler(elevation=(0, 80), area_uniform_probability=0.0, num_views=1)
    elevation = sampler.sample(20_000, 4, 4, generator).elevation[:, 0].sort().values
    assert (elevation - torch.linspace(0, 80, 20_000)).abs().max() / 80 < 0.0115


def test_narrow_ranges_are_filled_to_their_ends(generator):
    """The released sampler's area formula stopped at 3.18 of 5 degrees."""
    elevation = OrbitSampler(elevation=(0, 5), area_uniform_probability=1.0).sample(500, 4, 4, generator).elevation
    assert elevation.max() > 4.9


def test_sampling_follows_the_generator():
    draws = [OrbitSampler().sample(3, 8, 8, torch.Generator().manual_seed(seed)).c2w for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_range_is_widened_to_an_elevation_and_no_further():
    sampler = OrbitSampler(elevation=(-5.0, 30.0), fovy=(40.0, 40.0), num_views=2)
    assert sampler.covering(12.0) == sampler and sampler.covering(30.0) == sampler
    assert sampler.covering(52.0) == replace(sampler, elevation=(-5.0, 52.0))
    assert sampler.covering(-8.0, (-10.0, 40.0)).elevation == (-8.0, 30.0)
    assert sampler.covering(-50.0, (-10.0, 40.0)).elevation == (-10.0, 30.0)
    assert sampler.covering(85.0, (0.0, 20.0)) == sampler, "limits never take anything away"
    drawn = sampler.covering(52.0).sample(2000, 4, 4, torch.Generator().manual_seed(0)).elevation
    assert drawn.max() > 50 and drawn.min() < -3


@pytest.mark.parametrize(
    "arguments",
    [
        {"elevation": (10, 0)}, {"elevation": (0, 91)}, {"fovy": (0, 30)}, {"relative_distance": (0, 1)},
        {"distance": (-1, 1)}, {"num_views": 0}, {"area_uniform_probability": 1.5},
    ],
)  # fmt: skip
def test_sampler_names_the_impossible(arguments):
    with pytest.raises(UserError, match=f"OrbitSampler.{next(iter(arguments))}"):
        OrbitSampler(**arguments)


# Recorded reference


def test_recorded_sampler_is_reproduced(goldens):
    """Positions, poses and pixel rays of the released distillation camera sampler, rebuilt from its recorded draws."""
    from safetensors.torch import load_file

    recorded = load_file(goldens / "imagedream" / "camera.safetensors")
    names = sorted({key.split(".")[1] for key in recorded if key.startswith("sample.")})
    assert names
    for name in names:
        case = {key.split(".", 2)[2]: value for key, value in recorded.items() if key.startswith(f"sample.{name}.")}
        height, width = case["rays_d"].shape[1:3]
        cameras = from_angles(
            case["azimuth"], case["elevation"], case["camera_distances"], case["fovy"], height=height, width=width
        )
        torch.testing.assert_close(cameras.position, case["camera_positions"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(cameras.c2w, case["c2w"], atol=1e-6, rtol=1e-5)
        rays = torch.nn.functional.normalize(pixel_rays(cameras), dim=-1)
        torch.testing.assert_close(rays, case["rays_d"], atol=1e-6, rtol=1e-5)
        pixels, _ = cameras.project(case["rays_o"].reshape(len(rays), -1, 3) + case["rays_d"].reshape(len(rays), -1, 3))
        torch.testing.assert_close(
            pixels, cameras.project(cameras.position[:, None] + rays.reshape(len(rays), -1, 3))[0]
        )


# Files


def test_transforms_round_trip(tmp_path, generator):
    cameras = random_cameras(generator, 5).to(torch.float32)
    files = [f"{index:03d}.png" for index in range(5)]
    write_transforms(tmp_path / "transforms.json", cameras, files)
    first = (tmp_path / "transforms.json").read_bytes()
    read, names = read_transforms(tmp_path / "transforms.json")
    assert names == files and (read.height, read.width) == (cameras.height, cameras.width)
    assert torch.equal(read.c2w, cameras.c2w)
    torch.testing.assert_close(read.fovy, cameras.fovy)
    write_transforms(tmp_path / "transforms.json", cameras, files)
    assert (tmp_path / "transforms.json").read_bytes() == first


def test_transforms_hold_what_nerfstudio_reads(tmp_path):
    write_transforms(tmp_path / "t.json", orbit(2, fovy=60, height=30, width=40), ["a.png", "b.png"])
    document = json.loads((tmp_path / "t.json").read_text())
    assert (document["w"], document["h"], document["cx"], document["cy"]) == (40, 30, 20, 15)
    assert document["frames"][0]["fl_y"] == pytest.approx(15 / math.tan(math.radians(30)))
    assert [frame["file_path"] for frame in document["frames"]] == ["a.png", "b.png"]


def frames(**extra):
    return {"frames": [{"file_path": "a.png", "transform_matrix": torch.eye(4).tolist()}], **extra}


def test_synthetic_nerf_files_are_read(tmp_path):
    """Those give a horizontal angle and leave the size to the image."""
    from PIL import Image

    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    (tmp_path / "t.json").write_text(json.dumps(frames(camera_angle_x=0.8)))
    cameras, _ = read_transforms(tmp_path / "t.json")
    assert (cameras.height, cameras.width) == (60, 80)
    assert float(cameras.intrinsics()[0]) == pytest.approx(40 / math.tan(0.4), rel=1e-5)


@pytest.mark.parametrize(
    "document, words",
    [
        (frames(w=8, h=8), "focal length"),
        (frames(w=8, h=8, fl_x=8, fl_y=16), "square"),
        (frames(w=8, h=8, fl_x=8, cx=1), "principal point"),
        (frames(w=8, h=8, fl_x=8, k1=0.1), "distortion"),
        (frames(fl_x=8), "image size"),
        ({"frames": [{"file_path": "a.png", "transform_matrix": [[1.0]]}]}, "4x4"),
        ({"frames": [{"file_path": "a.png"}]}, "transform_matrix"),
        ({}, "frames"),
        ({"frames": []}, "frames"),
        ([], "frames"),
    ],
)
def test_other_lenses_and_files_are_refused(tmp_path, document, words):
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=words):
        read_transforms(tmp_path / "t.json")


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no camera file"):
        read_transforms(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("not json")
    with pytest.raises(UserError, match="transforms.json"):
        read_transforms(tmp_path / "t.json")
    with pytest.raises(ValueError, match="one file a camera"):
        write_transforms(tmp_path / "t.json", orbit(2), ["a.png"])


# The page about all this


def test_the_conventions_page_runs():
    import doctest
    from pathlib import Path

    page = Path(__file__).resolve().parent.parent / "docs" / "conventions.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried and not failed
