"""The object benchmark: its files, its order, what survives a kill, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from maquette.asset import Asset, load_mesh
from maquette.cameras import orbit
from maquette.errors import RunFailed, UserError
from maquette.evaluation.objects import TWELVE, ObjectBenchmark, choose_objects, evaluate_objects, evaluate_views
from maquette.images import Views, read_image
from maquette.rendering.raster import render_mesh
from tests.evaluation.conftest import OBJECTS, box_mesh


class Method:
    """Answers with a grey box, and counts."""

    def __init__(self, fail=(), interrupt=()):
        self.prompts, self.fail, self.interrupt = [], list(fail), list(interrupt)

    def __call__(self, prompt, folder):
        self.prompts.append(prompt)
        number = len(self.prompts)
        if number in self.interrupt:
            raise KeyboardInterrupt
        if number in self.fail:
            raise RuntimeError("no idea")
        (folder / "trace.txt").write_text("method's own file")
        return Asset(box_mesh((1.0, 0.4, 1.0), (0.5, 0.5, 0.5)))


@pytest.fixture
def benchmark(protocol):
    return ObjectBenchmark(protocol=protocol)


def test_order_is_shuffled_by_the_seed_among_objects_with_a_front(objects_folder):
    def ids(**settings):
        return [row["id"] for row in choose_objects(objects_folder, ObjectBenchmark(**settings))]

    assert sorted(ids()) == ["drum", "plank", "tower"]
    assert ids(limit=2) == ids()[:2]
    assert len({tuple(ids(seed=seed)) for seed in range(8)}) > 1
    assert ids(ids=("pebble", "drum")) == ["pebble", "drum"]
    with pytest.raises(UserError, match="'cat'"):
        ids(ids=("cat",))
    with pytest.raises(ValueError, match="twice"):
        ids(ids=("drum", "drum"))
    with pytest.raises(ValueError, match="limit"):
        ids(limit=0)


def test_the_report_holds_what_the_contract_names(objects_folder, benchmark, tmp_path):
    method, out = Method(), tmp_path / "metrics.json"
    report = evaluate_objects(objects_folder, method, benchmark, out=out, train=objects_folder, method={"name": "box"})
    assert json.loads(out.read_text()) == report
    assert report["version"] and report["seed"] == 0 and report["failures"] == []
    assert report["protocol"]["elevation"] == 5.0 and report["method"] == {"name": "box"}
    for entry in report["objects"]:
        assert {"id", "psnr", "ssim", "silhouette_iou", "chamfer", "volume_iou", "seconds"} <= entry.keys()
        folder = tmp_path / "metrics" / entry["id"]
        assert load_mesh(folder / "asset.glb").faces.shape == (12, 3)
        assert len(Views.load(folder / "views")) == 7
        assert read_image(folder / "prompt.png").shape == (4, 96, 96)
        assert (folder / "run" / "trace.txt").exists()
    assert set(report["baselines"]) == {"billboard", "lathe", "nearest"}
    for name, mean in report["mean"].items():
        values = [entry[name] for entry in report["objects"]]
        assert mean == pytest.approx(sum(values) / 3)
        low, high = report["interval"][name]
        assert min(values) - 1e-9 <= low <= mean <= high <= max(values) + 1e-9
    for baseline in report["baselines"].values():
        assert baseline["chamfer"] == baseline["mean"]["chamfer"]
        assert len(baseline["objects"]) == 3
    # The training objects are the very same: the nearest is perfect, which a baseline may be.
    assert report["baselines"]["nearest"]["volume_iou"] == pytest.approx(1)
    height, width = read_image(out.with_suffix(".png")).shape[1:]
    assert width > 2 * 5 * 32 and height >= 2 * 32


def test_the_method_sees_a_picture_and_nothing_else(objects_folder, benchmark, tmp_path):
    method = Method()
    evaluate_objects(objects_folder, method, benchmark, out=tmp_path / "m.json")
    for prompt in method.prompts:
        assert prompt.image is not None and prompt.image.image.shape == (3, 96, 96)
        assert (prompt.caption, prompt.negative, prompt.camera, prompt.cutout) == ("", "", None, None)


def test_a_second_call_measures_nothing_again(objects_folder, benchmark, tmp_path):
    out = tmp_path / "m.json"
    first = evaluate_objects(objects_folder, Method(), benchmark, out=out)
    idle = Method()
    assert evaluate_objects(objects_folder, idle, benchmark, out=out) == first
    assert idle.prompts == []


def test_other_encoders_measure_again_what_was_made_before(objects_folder, protocol, tmp_path):
    out, method = tmp_path / "m.json", Method()
    config = ObjectBenchmark(protocol=protocol, limit=1)
    first = evaluate_objects(objects_folder, method, config, out=out)
    more = evaluate_objects(objects_folder, method, config, out=out, encoders=[Encoder()])
    assert len(method.prompts) == 1 and "mean_image" in more["mean"] and "mean_image" in more["baselines"]["lathe"]
    assert {name: more["mean"][name] for name in first["mean"]} == first["mean"]


def test_more_objects_later_keep_the_earlier_ones(objects_folder, protocol, tmp_path):
    out, method = tmp_path / "m.json", Method()
    few = evaluate_objects(objects_folder, method, ObjectBenchmark(protocol=protocol, limit=1), out=out)
    all_three = evaluate_objects(objects_folder, method, ObjectBenchmark(protocol=protocol), out=out)
    assert len(method.prompts) == 3 and all_three["objects"][0] == few["objects"][0]


def test_an_interrupted_benchmark_goes_on(objects_folder, benchmark, tmp_path):
    out = tmp_path / "m.json"
    whole = evaluate_objects(objects_folder, Method(), benchmark, out=tmp_path / "whole.json")
    method = Method(interrupt=[2])
    with pytest.raises(KeyboardInterrupt):
        evaluate_objects(objects_folder, method, benchmark, out=out)
    assert not out.exists()
    resumed = evaluate_objects(objects_folder, method, benchmark, out=out)
    assert len(method.prompts) == 4
    for a, b in zip(resumed["objects"], whole["objects"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_failures_are_listed_left_out_and_tried_again(objects_folder, benchmark, tmp_path):
    out, lines = tmp_path / "m.json", []
    method = Method(fail=[2])
    report = evaluate_objects(objects_folder, method, benchmark, out=out, say=lines.append)
    assert len(report["objects"]) == 2 and report["failures"][0]["error"] == "RuntimeError: no idea"
    assert len(report["baselines"]["lathe"]["objects"]) == 2
    assert any("no idea" in line for line in lines) and len(lines) == 3
    again = evaluate_objects(objects_folder, method, benchmark, out=out)
    assert len(again["objects"]) == 3 and again["failures"] == [] and len(method.prompts) == 4
    with pytest.raises(RunFailed, match="no idea"):
        evaluate_objects(objects_folder, Method(fail=[1, 2, 3]), benchmark, out=tmp_path / "none.json")


def test_other_settings_in_the_same_place_are_refused(objects_folder, benchmark, protocol, tmp_path):
    out = tmp_path / "m.json"
    evaluate_objects(objects_folder, Method(), benchmark, out=out, method={"name": "box"})
    with pytest.raises(UserError, match=r"method\.name = 'box'"):
        evaluate_objects(objects_folder, Method(), benchmark, out=out, method={"name": "ball"})
    with pytest.raises(UserError, match="seed = 0"):
        evaluate_objects(
            objects_folder, Method(), ObjectBenchmark(protocol=protocol, seed=1), out=out, method={"name": "box"}
        )
    replaced = Method()
    evaluate_objects(objects_folder, replaced, benchmark, out=out, method={"name": "ball"}, overwrite=True)
    assert len(replaced.prompts) == 3


def test_a_folder_of_other_things_is_left_alone(objects_folder, benchmark, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        evaluate_objects(objects_folder, Method(), benchmark, out=tmp_path / "m.json", overwrite=True)
    assert (tmp_path / "m" / "thesis.txt").read_text() == "dear"
    with pytest.raises(UserError, match=r"\.json"):
        evaluate_objects(objects_folder, Method(), benchmark, out=tmp_path / "m.txt")


class Encoder:
    """Hue of what is not white, as a unit vector."""

    name = "mean"

    def embed_images(self, images):
        return torch.nn.functional.normalize((1 - images).mean((-2, -1)) + 1e-6, dim=-1)


def test_encoders_add_their_likeness(objects_folder, benchmark, tmp_path):
    report = evaluate_objects(objects_folder, Method(), benchmark, out=tmp_path / "m.json", encoders=[Encoder()])
    assert 0 < report["mean"]["mean_image"] <= 100
    assert report["encoders"] == ["mean"] and "measured_by" not in report["objects"][0]
    # The nearer answer in colour is the more like one.
    assert report["baselines"]["lathe"]["mean_image"] > report["mean"]["mean_image"]


def perfect_views(size=48):
    """A method that cheats: it knows the objects by their colour."""
    cameras = orbit(4, elevation=5.0, height=size, width=size)

    def sample(prompt, folder):
        colour = prompt.image.image[:, prompt.image.mask[0] > 0.9].mean(1)
        nearest = min(
            OBJECTS, key=lambda name: float((torch.from_numpy(OBJECTS[name].vertex_colors[0]) - colour).norm())
        )
        return render_mesh(OBJECTS[nearest].normalized(), cameras, samples=2).views()

    return sample


def test_views_are_measured_one_by_one_with_their_baselines(objects_folder, benchmark, tmp_path):
    report = evaluate_views(objects_folder, perfect_views(), benchmark, out=tmp_path / "v.json", train=objects_folder)
    assert set(report["baselines"]) == {"copy", "nearest"}
    assert "chamfer" not in report["mean"] and report["mean"]["psnr"] > 60
    assert [round(view["azimuth"]) for view in report["by_view"]] == [0, 90, 180, 270]
    copy = report["baselines"]["copy"]
    # The copy is right about the prompt's own view and wrong about the sides of a tower and of a plank.
    assert copy["by_view"][0]["silhouette_iou"] > 0.8 > copy["by_view"][1]["silhouette_iou"]
    assert copy["silhouette_iou"] == pytest.approx(sum(view["silhouette_iou"] for view in copy["by_view"][1:]) / 3)
    assert report["baselines"]["nearest"]["silhouette_iou"] > 0.9
    assert len(Views.load(tmp_path / "v" / "tower" / "views")) == 4
    assert len(Views.load(tmp_path / "v" / "tower" / "copy" / "views")) == 4


def test_views_and_assets_do_not_share_a_place(objects_folder, benchmark, tmp_path):
    evaluate_objects(objects_folder, Method(), benchmark, out=tmp_path / "m.json")
    with pytest.raises(UserError, match="kind = 'assets'"):
        evaluate_views(objects_folder, perfect_views(), benchmark, out=tmp_path / "m.json")


def test_the_objects_of_the_tables_are_named_and_are_those_of_seed_0(shared):
    val = shared("data", "objects", "val")
    assert tuple(row["id"] for row in choose_objects(val, ObjectBenchmark(limit=12))) == TWELVE
    assert tuple(row["id"] for row in choose_objects(val, ObjectBenchmark(ids=("twelve",)))) == TWELVE
