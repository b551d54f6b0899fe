"""The GSO protocol: recorded rotations and placements, analytic shapes, and a benchmark that survives what happens."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from maquette.asset import Asset, Mesh, load_mesh
from maquette.errors import RunFailed, UserError
from maquette.evaluation.gso import (
    ROTATIONS,
    GsoProtocol,
    Scan,
    find_shape,
    in_camera_frame,
    look,
    read_upright,
    voxel_downsample,
)
from maquette.evaluation.gso_benchmark import GsoBenchmark, evaluate_gso
from maquette.images import read_image, save_image
from tests.evaluation.conftest import box_mesh
from tests.parity.metrics import solids

FEW = GsoProtocol(size=40, num_views=4, voxel=0.04, resolution=16, samples=1)


def ball(radius: float, centre=(0.0, 0.0, 0.0), subdivisions: int = 4) -> Mesh:
    import trimesh

    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    colors = np.tile((0.6, 0.3, 0.2), (len(shape.vertices), 1))
    return Mesh(shape.vertices + np.asarray(centre), shape.faces, vertex_colors=colors)


# Formulas


@pytest.fixture
def recorded(goldens):
    with safe_open(goldens / "usd" / "metrics.safetensors", "pt") as file:
        return {name: file.get_tensor(name).numpy() for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def test_the_thirty_objects_and_their_rotations_are_the_recorded_ones(recorded):
    assert dict(ROTATIONS) == json.loads(recorded[1]["gt_rotation"]) and len(ROTATIONS) == 30


def test_scans_are_placed_as_recorded(recorded):
    tensors, _ = recorded
    vertices = tensors["verts"]
    mesh = Mesh(vertices, np.stack([np.arange(48), np.arange(1, 49), np.arange(2, 50)], axis=1))
    cases = [name for name in tensors if name.startswith("transform_gt_")]
    assert len(cases) > 2
    for name in cases:
        placed = in_camera_frame(mesh, float(name.removeprefix("transform_gt_")))
        np.testing.assert_allclose(placed.vertices, tensors[name], atol=2e-6)


def test_cameras_are_the_released_ones():
    cameras = GsoProtocol().cameras()
    assert len(cameras) == 16 and cameras.height == cameras.width == 256
    torch.testing.assert_close(cameras.intrinsics(), torch.full((16,), 280.0), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(cameras.azimuth % 360, torch.arange(16) * 22.5, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(cameras.elevation, torch.full((16,), 30.0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(cameras.distance, torch.full((16,), 1.5))


def test_downsampling_is_the_mean_of_each_cube():
    points = np.random.default_rng(0).random((300, 3))
    groups: dict[tuple[int, ...], list[np.ndarray]] = {}
    low = points.min(0) - 0.05  # half a cube, as Open3D lays its grid
    for point in points:
        groups.setdefault(tuple(np.floor((point - low) / 0.1).astype(int)), []).append(point)
    expected = np.array([np.mean(groups[key], axis=0) for key in sorted(groups)])
    np.testing.assert_allclose(voxel_downsample(points, 0.1), expected, atol=1e-12)


def test_depth_becomes_points_on_the_surface():
    protocol = replace(FEW, size=64, voxel=0.01)
    _, points = look(ball(0.5), protocol)
    radius = np.linalg.norm(points, axis=1)
    assert radius.max() < 0.501 and radius.min() > 0.495  # means of cubes lie a little below a curved surface
    assert points[:, 2].min() > -0.45  # cameras look down at 30 degrees: the bottom is not seen


@pytest.mark.parametrize("size", [(0.5, 0.4), (0.5, 0.45)])
def test_concentric_balls_have_the_figures_of_their_closed_form(size):
    """Tolerance: the pixels' and cubes' size for the distance, the cells' for the volume."""
    large, small = size
    protocol = GsoProtocol(size=96, num_views=16, voxel=0.02, resolution=48, samples=1)
    truth = solids.closed_form(f"concentric spheres radii {small} and {large}")
    figures = Scan.of(ball(large), "ball", 0.0, protocol).score(ball(small), "as-is")
    assert figures["chamfer"] == pytest.approx(truth["cd_l1_half_sum"], rel=0.05)
    assert figures["volume_iou"] == pytest.approx(truth["value"], rel=0.02)


def test_balls_beside_each_other_overlap_as_their_closed_form():
    protocol = replace(FEW, resolution=64)
    truth = solids.closed_form("equal spheres radius 0.5 at distance 0.3")["value"]
    figures = Scan.of(ball(0.5), "ball", 0.0, protocol).score(ball(0.5, (0.3, 0, 0)), "as-is")
    assert figures["volume_iou"] == pytest.approx(truth, rel=0.03)


def test_an_object_is_like_itself_and_a_turned_one_is_not():
    mesh = box_mesh((1.0, 0.3, 0.5), (0.8, 0.2, 0.1))
    scan = Scan.of(mesh, "sofa", -90.0, FEW)
    same = scan.score(in_camera_frame(mesh, -90.0), "as-is")
    assert same["chamfer"] == 0 and same["volume_iou"] == same["volume_iou_enclosed"] == 1
    assert same["psnr"] == same["psnr_novel"] == 100 and same["ssim"] == same["ssim_inferred_range"] == 1
    turned = scan.score(in_camera_frame(mesh, 0.0), "as-is")
    assert turned["chamfer"] > 0.05 and turned["volume_iou"] < 0.5 and turned["psnr"] < 25
    other = scan.score(ball(0.4), "as-is")
    views, truth = (each.composite(torch.ones(3)) for each in (look(ball(0.4), FEW)[0], scan.views))
    single = -10 * (views - truth).square().mean(dim=(1, 2, 3)).log10()
    assert other["psnr"] == pytest.approx(float(single.mean()), rel=1e-4)
    assert other["psnr_novel"] == pytest.approx(float(single[1:].mean()), rel=1e-4)


def test_a_result_in_a_frame_of_its_own_is_given_the_scans_box():
    mesh = box_mesh((1.0, 0.4, 0.6), (0.2, 0.5, 0.3))
    scan, other = Scan.of(mesh, "bell", 0.0, FEW), box_mesh((2.0, 0.8, 1.2), (0.2, 0.5, 0.3), centre=(0.3, 0.2, 0.1))
    assert scan.score(other, "as-is")["volume_iou"] < 0.6
    boxed = scan.score(other, "box")
    assert boxed["volume_iou"] == 1 and boxed["chamfer"] < 1e-4
    with pytest.raises(ValueError, match="another frame"):
        scan.score(box_mesh((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), centre=(50, 0, 0)), "as-is")


def test_a_learned_distance_is_asked_for_pairs_on_white():
    seen = []

    def lpips(a, b):
        seen.append((a, b))
        return (a - b).abs().mean(dim=(1, 2, 3))

    mesh = box_mesh((1.0, 0.4, 0.6), (0.2, 0.5, 0.3))
    figures = Scan.of(mesh, "bell", 0.0, FEW).score(mesh, "as-is", lpips)
    assert figures["lpips"] == figures["lpips_novel"] == 0 and seen[0][0].shape == (4, 3, 40, 40)
    assert seen[0][0].dtype == torch.float32 and float(seen[0][0][:, :, 0, 0].min()) == 1


# The benchmark

NAMES = ("sofa", "teapot", "bell")


@pytest.fixture
def scans(tmp_path):
    """A GLB, a folder with a mesh deep inside, and a PLY, which stands on +z."""
    folder = tmp_path / "scans"
    (folder / "teapot" / "meshes").mkdir(parents=True)
    Asset(box_mesh((1.0, 0.4, 0.6), (0.8, 0.2, 0.1))).save(folder / "sofa.glb")
    Asset(ball(0.3, subdivisions=2)).save(folder / "teapot" / "meshes" / "model.glb")
    Asset(box_mesh((0.4, 0.4, 1.0), (0.1, 0.2, 0.9))).save(folder / "bell.ply")
    return folder


class Method:
    """Answers with a box, and counts."""

    def __init__(self, fail=(), interrupt=()):
        self.prompts, self.fail, self.interrupt = [], list(fail), list(interrupt)

    def __call__(self, prompt, folder):
        self.prompts.append(prompt)
        if len(self.prompts) in self.interrupt:
            raise KeyboardInterrupt
        if len(self.prompts) in self.fail:
            raise RuntimeError("no idea")
        return Asset(box_mesh((1.0, 0.5, 0.8), (0.5, 0.5, 0.5)))


SETTINGS = GsoBenchmark(FEW, NAMES, "box")


def test_meshes_are_found_where_people_have_them(scans, tmp_path):
    assert find_shape(scans, "sofa").name == "sofa.glb" and find_shape(scans, "teapot").name == "model.glb"
    assert find_shape(scans, "shoe") is None
    assert read_upright(find_shape(scans, "bell")).bounds[1, 2] == pytest.approx(0.5)
    (scans / "teapot" / "second.obj").write_text("v 0 0 0\n")
    with pytest.raises(UserError, match="2 meshes"):
        find_shape(scans, "teapot")


def test_the_report_holds_every_object_and_the_protocol(scans, tmp_path):
    method, out, lines = Method(), tmp_path / "gso.json", []
    report = evaluate_gso(scans, SETTINGS, reconstruct=method, out=out, method={"name": "box"}, say=lines.append)
    assert json.loads(out.read_text()) == report and [row["id"] for row in report["objects"]] == list(NAMES)
    assert report["placement"] == "box" and report["protocol"]["elevation"] == 30 and report["failures"] == []
    keys = {"chamfer", "volume_iou", "volume_iou_enclosed", "psnr", "psnr_novel", "ssim", "seconds"}
    for row in report["objects"]:
        assert keys <= row.keys()
        assert len(load_mesh(tmp_path / "gso" / row["id"] / "asset.glb").faces) == 12
    assert report["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in report["objects"]]))
    assert keys <= report["interval"].keys() and len(lines) == 3 and "chamfer" in lines[0]
    for prompt in method.prompts:
        assert prompt.image.image.shape == (3, 40, 40) and prompt.caption == "" and prompt.camera is None
    assert read_image(tmp_path / "gso" / "bell" / "prompt.png").shape == (4, 40, 40)
    assert out.with_suffix(".png").is_file()


def test_a_method_may_be_told_the_elevation_and_nothing_else_of_the_camera(scans, tmp_path):
    method = Method()
    report = evaluate_gso(scans, replace(SETTINGS, told=True), reconstruct=method, out=tmp_path / "gso.json")
    assert report["told"] is True
    for prompt in method.prompts:
        assert prompt.camera.elevation == FEW.elevation and prompt.camera.azimuth == 0 and prompt.camera.reliable


def test_it_goes_on_where_it_was_and_measures_nothing_twice(scans, tmp_path):
    out, method = tmp_path / "gso.json", Method(interrupt=[2])
    with pytest.raises(KeyboardInterrupt):
        evaluate_gso(scans, SETTINGS, reconstruct=method, out=out)
    report = evaluate_gso(scans, SETTINGS, reconstruct=method, out=out)
    assert len(method.prompts) == 4 and len(report["objects"]) == 3
    idle = Method()
    assert evaluate_gso(scans, SETTINGS, reconstruct=idle, out=out) == report and idle.prompts == []
    # Another scan of the same name is measured again, with the answer that is there.
    Asset(ball(0.3, subdivisions=2)).save(scans / "sofa.glb")
    again = evaluate_gso(scans, SETTINGS, reconstruct=idle, out=out)
    assert idle.prompts == [] and again["objects"][0]["chamfer"] != report["objects"][0]["chamfer"]
    assert again["objects"][0]["seconds"] == report["objects"][0]["seconds"]


def test_failures_are_listed_and_tried_again(scans, tmp_path):
    out, method = tmp_path / "gso.json", Method(fail=[1])
    report = evaluate_gso(scans, SETTINGS, reconstruct=method, out=out)
    assert report["failures"] == [{"id": "sofa", "error": "RuntimeError: no idea"}] and len(report["objects"]) == 2
    assert len(evaluate_gso(scans, SETTINGS, reconstruct=method, out=out)["objects"]) == 3
    with pytest.raises(RunFailed, match="no idea"):
        evaluate_gso(scans, SETTINGS, reconstruct=Method(fail=[1, 2, 3]), out=tmp_path / "none.json")


def test_results_that_are_there_are_measured_as_they_are(scans, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    Asset(in_camera_frame(load_mesh(scans / "sofa.glb"), -90.0)).save(made / "sofa.glb")
    Asset(box_mesh((1.0, 1.0, 1.0), (0.5, 0.5, 0.5))).save(made / "bell.glb")
    out, config = tmp_path / "gso.json", replace(SETTINGS, placement="as-is")
    report = evaluate_gso(scans, config, results=made, out=out)
    assert report["method"] == {"results": "made"} and report["failures"][0]["id"] == "teapot"
    assert report["objects"][0]["volume_iou"] == 1 and "seconds" not in report["objects"][0]
    Asset(box_mesh((0.4, 0.4, 1.0), (0.1, 0.2, 0.9))).save(made / "bell.glb")
    better = evaluate_gso(scans, config, results=made, out=out)
    assert better["objects"][1]["volume_iou"] == 1 > report["objects"][1]["volume_iou"]


def test_published_renders_take_the_place_of_ours(scans, tmp_path):
    renders = tmp_path / "renders"
    for name in NAMES:
        (renders / name).mkdir(parents=True)
        for number in range(4):
            picture = torch.full((4, 40, 40), 0.5)
            save_image(renders / name / f"{number:03d}.png", picture)
    method = Method()
    evaluate_gso(scans, SETTINGS, reconstruct=method, renders=renders, out=tmp_path / "gso.json")
    assert float(method.prompts[0].image.mask.mean()) == pytest.approx(0.5, abs=0.01)
    save_image(renders / "sofa" / "002.png", torch.zeros(4, 8, 8))
    (renders / "bell" / "003.png").unlink()
    report = evaluate_gso(scans, SETTINGS, reconstruct=Method(), renders=renders, out=tmp_path / "again.json")
    errors = {row["id"]: row["error"] for row in report["failures"]}
    assert "8x8" in errors["sofa"] and "003.png" in errors["bell"]


def test_what_cannot_be_measured_is_refused(scans, tmp_path):
    out = tmp_path / "gso.json"
    with pytest.raises(UserError, match=r"'alarm' and lacks 27 of 30"):
        evaluate_gso(scans, GsoBenchmark(FEW), reconstruct=Method(), out=out)
    with pytest.raises(UserError, match="not a folder of scans"):
        evaluate_gso(scans / "nowhere", SETTINGS, reconstruct=Method(), out=out)
    with pytest.raises(UserError, match="not a folder of results"):
        evaluate_gso(scans, SETTINGS, results=scans / "nowhere", out=out)
    with pytest.raises(UserError, match="either a method"):
        evaluate_gso(scans, SETTINGS, out=out)
    with pytest.raises(UserError, match=r"\.json"):
        evaluate_gso(scans, SETTINGS, reconstruct=Method(), out=tmp_path / "gso.txt")
    with pytest.raises(UserError, match="'cat'"):
        GsoBenchmark(FEW, ("cat",))
    with pytest.raises(UserError, match="twice"):
        GsoBenchmark(FEW, ("sofa", "sofa"))
    with pytest.raises(ValueError, match="num_views"):
        GsoProtocol(num_views=0)
    evaluate_gso(scans, replace(SETTINGS, objects=("sofa",)), reconstruct=Method(), out=out)
    with pytest.raises(UserError, match="--overwrite"):
        evaluate_gso(scans, replace(SETTINGS, placement="as-is"), reconstruct=Method(), out=out)
    method = Method()
    evaluate_gso(scans, GsoBenchmark(FEW, ("sofa",), "as-is"), reconstruct=method, out=out, overwrite=True)
    assert len(method.prompts) == 1


def test_the_command_measures_meshes_that_are_there(scans, tmp_path, capsys):
    from maquette.commands import evaluate

    out = tmp_path / "table.json"
    words = ["gso", str(scans), "--objects", "bell", "--results", str(scans), "--out", str(out)]
    assert evaluate.run(words) == 0
    report = json.loads(out.read_text())
    assert report["placement"] == "as-is" and report["pictures"] == "rendered here, unlit"
    assert report["mean"]["volume_iou"] == 1 and "1 objects, 0 failures" in capsys.readouterr().out
    with pytest.raises(UserError, match="placement"):
        evaluate.run([*words, "--placement", "box"])
    for others in (words, ["gso", str(scans), "--method", "imagedream", "--objects", "bell"]):
        with pytest.raises(UserError, match="--given tells usd the elevation"):
            evaluate.run([*others, "--given", "--out", str(tmp_path / "given.json")])
    with pytest.raises(UserError, match="no weights at"):
        evaluate.run([*words, "--lpips", str(tmp_path / "vgg.pth"), str(tmp_path / "heads.pth")])
