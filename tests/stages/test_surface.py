"""A surface is fitted by the one loop, survives a stop, and becomes a mesh painted with pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from maquette.asset import Mesh
from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.evaluation.truth import Protocol, Truth
from maquette.fields import FrequencyConfig, SurfaceFieldConfig, TextureConfig
from maquette.images import Views
from maquette.meshing import MeshConfig, ProjectionConfig
from maquette.rendering import Cap, OccupancyConfig, SurfaceConfig, SurfaceScene, render_mesh, render_views
from maquette.run import Run, read_log
from maquette.schedules import Constant, Exponential, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.objectives import Photometric, PhotometricConfig, RandomRays
from maquette.stages.regularizers import Regularizers
from maquette.stages.surface import make_mesh

SMALL = SurfaceConfig(
    field=SurfaceFieldConfig(
        encoding=FrequencyConfig(3),
        hidden=32,
        features=6,
        texture=TextureConfig(16, 1, normals=False, directions=False),
    ),
    anneal=Linear(0.0, 1.0, 0.5),
    cap=Cap(200.0),
    occupancy=OccupancyConfig(resolution=24, interval=8, warmup=10_000, threshold=1e-3),
    samples=Constant(80),
)
FAST = FitConfig(steps=80, network_rate=0.01, other_rate=0.03, rate=Exponential(1.0, 0.1), weight_decay=0.0)
MESH = MeshConfig(resolution=48, max_faces=3000, texture_size=128, unwrap_seconds=0)
WHITE = torch.ones(3)


def egg() -> Mesh:
    """An ellipsoid, red above and blue below."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4)
    vertices = np.asarray(ball.vertices) * (0.35, 0.35, 0.6)
    colors = np.where(vertices[:, 2:] > 0, (0.8, 0.2, 0.1), (0.1, 0.2, 0.8))
    return Mesh(vertices, np.asarray(ball.faces), vertex_colors=colors)


@pytest.fixture(scope="module")
def views() -> Views:
    return render_mesh(egg(), orbit(8, elevation=15.0, height=32, width=32), samples=2).views()


def objective(views: Views) -> Photometric:
    penalties = Regularizers(eikonal=Constant(0.1))
    return Photometric(views, PhotometricConfig(pixels=RandomRays(256), mask=Constant(0.3), regularizers=penalties))


def open_run(folder):
    return Run.open(folder, seed=1, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def fitted(views, tmp_path_factory):
    with open_run(tmp_path_factory.mktemp("run")) as run:
        return run.stage("fit", fit, SurfaceScene(SMALL), [objective(views)], FAST)


def test_a_sphere_becomes_the_egg_that_the_pictures_show(views, fitted):
    def error(scene):
        ours = render_views(scene, views.cameras).composite(WHITE)
        return float((ours - views.composite(WHITE)).square().mean())

    assert error(fitted) < 0.2 * error(SurfaceScene(SMALL))
    assert float(fitted.sharpness().detach()) > 25
    tips = fitted.field.sdf(torch.tensor([[0.0, 0.0, 0.5], [0.5, 0.0, 0.0]])).flatten()
    assert tips[0] < 0 < tips[1]


@dataclass(frozen=True)
class Stopper:
    """The objective, until a step at which the person stops the run."""

    inner: Photometric
    at: int
    name: str = "photometric"
    weight: Constant = Constant(1.0)
    every: int = 1

    def to(self, device):
        return self

    def shot(self, step, total, generator, device):
        if step == self.at:
            raise KeyboardInterrupt
        return self.inner.shot(step, total, generator, device)

    def loss(self, *arguments):
        return self.inner.loss(*arguments)


def test_a_stopped_fit_goes_on_to_the_same_scene(views, tmp_path):
    """All that the scene remembers is in the checkpoint: annealing, the cap of s, the grid, the samples' distance."""
    config = replace(FAST, steps=14, checkpoint_seconds=0.0)
    with open_run(tmp_path / "whole") as run:
        whole = run.stage("fit", fit, SurfaceScene(SMALL), [objective(views)], config)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "broken") as run:
        run.stage("fit", fit, SurfaceScene(SMALL), [Stopper(objective(views), 9)], config)
    with open_run(tmp_path / "broken") as run:
        resumed = run.stage("fit", fit, SurfaceScene(SMALL), [Stopper(objective(views), -1)], config)
    assert resumed.fingerprint() == whole.fingerprint()
    steps = [line["step"] for line in read_log(tmp_path / "broken") if "loss" in line]
    assert steps == list(range(14))


def test_the_mesh_is_the_zero_level_with_pictures_painted_on(views, fitted, tmp_path):
    green = replace(views, images=torch.zeros_like(views.images) + torch.tensor([0.0, 1.0, 0.0])[:, None, None])
    front = replace(green, images=green.images[:1], masks=green.masks[:1], cameras=green.cameras[:1])
    with open_run(tmp_path) as run:
        plain = run.stage("plain", make_mesh, fitted, MESH, None, None)
        painted = run.stage("painted", make_mesh, fitted, MESH, views, ProjectionConfig())
        both = run.stage("both", make_mesh, fitted, MESH, (views, front), ProjectionConfig())
        lines = [line for line in read_log(tmp_path) if line.get("event") == "mesh_quality"]
    assert plain.is_watertight and lines[0]["threshold"] == 0 and lines[0]["components"] == 1
    on_it = fitted.field.sdf(torch.from_numpy(plain.vertices)).abs()
    assert on_it.mean() < 0.01  # smoothing moves vertices a little
    figures = Truth.of(egg(), Protocol(view_size=32, num_points=2000, resolution=32), 0, "egg").score(painted)
    assert figures["volume_iou"] > 0.85 and figures["chamfer"] < 0.03

    def seen(mesh, view):
        camera = views.cameras[view : view + 1]
        return render_mesh(mesh, camera).views().composite(WHITE)[0]

    target = views.composite(WHITE)
    for view in (0, 3):
        assert (seen(painted, view) - target[view]).abs().mean() < (
            seen(plain, view) - target[view]
        ).abs().mean() + 5e-3
    middle = (slice(None), slice(14, 18), slice(14, 18))
    assert seen(both, 0)[middle][1].mean() > 0.8  # the front is green,
    assert (seen(both, 4)[middle] - seen(painted, 4)[middle]).abs().max() < 0.02  # and the back is as it was


def test_a_scene_of_another_kind_is_not_loaded(fitted, tmp_path):
    from maquette.rendering import VolumeScene

    fitted.save(tmp_path)
    with pytest.raises(UserError, match="SurfaceConfig"):
        VolumeScene.load(tmp_path)
