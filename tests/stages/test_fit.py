"""The one loop: it learns, is killed, goes on to the same bytes, and stops where a gradient is not a number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import RunFailed
from maquette.fields import (
    FlatBackgroundConfig,
    FlatBias,
    LearnedBackgroundConfig,
    LinearBlob,
    RadianceConfig,
    TriPlanesConfig,
)
from maquette.images import Views
from maquette.rendering import OccupancyConfig, Shot, VolumeConfig, VolumeScene, render_views
from maquette.run import Run, read_log
from maquette.schedules import Constant, Linear, Piecewise
from maquette.stages.fit import FitConfig, fit
from maquette.stages.objectives import Photometric, PhotometricConfig, RandomRays

SMALL = VolumeConfig(
    field=RadianceConfig(encoding=TriPlanesConfig((8, 16), 4), bias=FlatBias(-3.0), density_scale=10.0, hidden=16),
    background=FlatBackgroundConfig(),
    occupancy=OccupancyConfig(resolution=16, interval=4, warmup=20),
    samples=Constant(48),
)
FAST = FitConfig(steps=16, encoding_rate=0.05, network_rate=0.01, rate=Linear(1.0, 0.1), total_variation=Constant(0.01))


@pytest.fixture(scope="module")
def views() -> Views:
    """Six pictures of a red ball."""
    cameras = orbit(6, elevation=15.0, height=20, width=20)
    ball = VolumeScene(replace(SMALL, field=replace(SMALL.field, bias=LinearBlob(60.0, 0.5))))
    seen = render_views(ball, cameras)
    images = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(6, 3, 20, 20)
    return Views(images.contiguous(), seen.masks, cameras)


def photometric(views, rays=256, **changes) -> Photometric:
    return Photometric(views, PhotometricConfig(pixels=RandomRays(rays), **changes))


def open_run(folder):
    return Run.open(folder, seed=1, device="cpu", quiet=True)


def test_it_learns_and_leaves_the_given_scene_alone(views, tmp_path):
    scene = VolumeScene(SMALL)
    before = scene.fingerprint()
    with open_run(tmp_path) as run:
        fitted = run.stage("fit", fit, scene, [photometric(views, 512)], replace(FAST, steps=100))
    assert scene.fingerprint() == before
    white = torch.ones(3)
    error = [
        (render_views(s, views.cameras).composite(white) - views.composite(white)).square().mean()
        for s in (scene, fitted)
    ]
    assert error[0] > 0.02 and error[1] < 0.006
    lines = [line for line in read_log(tmp_path) if line["step"] is not None and "loss" in line]
    assert [line["step"] for line in lines] == list(range(100))
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 5 and {"rgb", "mask", "samples_per_ray", "gradient"} <= set(lines[0])


@dataclass(frozen=True)
class Saboteur:
    """A photometric objective that stops the run, as a kill would, in a given step, or hands out a bad gradient."""

    inner: Photometric
    kill_at: int = -1
    bad: tuple[int, ...] = ()
    name: str = "photometric"
    weight: Constant = Constant(1.0)
    every: int = 1

    def fingerprint(self) -> str:
        return "saboteur"

    def to(self, device):
        return self

    def shot(self, *args):
        return self.inner.shot(*args)

    def loss(self, rendering, shot, step, total, generator):
        if step == self.kill_at:
            raise ConnectionAbortedError("killed")
        loss, metrics = self.inner.loss(rendering, shot, step, total, generator)
        return (loss * float("nan") if step in self.bad else loss), metrics


@pytest.mark.parametrize("background", [FlatBackgroundConfig(), LearnedBackgroundConfig(4, 1)])
def test_a_killed_fit_resumes_to_the_same_bytes(views, tmp_path, background):
    scene = VolumeScene(replace(SMALL, background=background, levels=Piecewise((0.5, 1.0), (0.4,))))
    config = replace(FAST, checkpoint_seconds=0.0)
    inner = photometric(views, background="own")
    with open_run(tmp_path / "whole") as run:
        whole = run.stage("fit", fit, scene, [Saboteur(inner)], config)
    for kill_at in (3, 9, 15):
        with pytest.raises(ConnectionAbortedError), open_run(tmp_path / "killed") as run:
            run.stage("fit", fit, scene, [Saboteur(inner, kill_at)], config)
    with open_run(tmp_path / "killed") as run:
        resumed = run.stage("fit", fit, scene, [Saboteur(inner)], config)
    files = [tmp_path / name / "stages/fit/result/scene.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert whole.fingerprint() == resumed.fingerprint() != scene.fingerprint()
    steps = [line["step"] for line in read_log(tmp_path / "killed") if "loss" in line]
    assert steps == list(range(16)), "every step is logged once"


def test_several_threads_give_the_same_bytes_every_time(views, tmp_path):
    """On a CPU; an unordered sum over threads would differ from run to run. (Another number of threads may differ.)"""
    found = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for name in ("first", "second"):
            with open_run(tmp_path / name) as run:
                config = replace(FAST, steps=6)
                fitted = run.stage("fit", fit, VolumeScene(SMALL), [photometric(views, 4096)], config)
            found.append(fitted.fingerprint())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_bad_gradients_are_skipped_and_counted(views, tmp_path):
    with open_run(tmp_path) as run:
        fitted = run.stage("fit", fit, VolumeScene(SMALL), [Saboteur(photometric(views), bad=(2, 5, 9))], FAST)
    assert all(p.isfinite().all() for p in fitted.parameters())
    skipped = [line["step"] for line in read_log(tmp_path) if line.get("event") == "skipped"]
    assert skipped == [2, 5, 9]


def test_too_many_bad_gradients_end_the_run(views, tmp_path):
    objective = Saboteur(photometric(views), bad=tuple(range(8, 100)))
    config = replace(FAST, checkpoint_seconds=0.0, max_skipped=4)
    with (
        pytest.raises(RunFailed, match="4 steps, last in step 11; the last good checkpoint is that of step 11"),
        open_run(tmp_path) as run,
    ):
        run.stage("fit", fit, VolumeScene(SMALL), [objective], config)


@dataclass(frozen=True)
class Counter:
    """Counts its turns."""

    views: Views
    turns: list[int]
    name: str = "counter"
    weight: Piecewise = Piecewise((1.0, 0.0), (0.5,))
    every: int = 3

    def fingerprint(self) -> str:
        return "counter"

    def to(self, device):
        return self

    def shot(self, step, total, generator, device):
        self.turns.append(step)
        return Shot(self.views.cameras[:1], background=torch.ones(3))

    def loss(self, rendering, shot, step, total, generator):
        return rendering.rgb.mean(), {"turns": len(self.turns)}


def test_objectives_take_turns_and_rest(views, tmp_path):
    counter = Counter(views, [])
    with open_run(tmp_path) as run:
        run.stage("fit", fit, VolumeScene(SMALL), [photometric(views), counter], replace(FAST, steps=20))
    assert counter.turns == [0, 3, 6, 9]
    lines = [line for line in read_log(tmp_path) if "photometric.loss" in line]
    assert len(lines) == 20 and sum("counter.turns" in line for line in lines) == 4


def test_gradients_of_objectives_add_up(views, tmp_path):
    """Two objectives of weight 1/2 that draw the same pixels are one of weight 1."""
    scenes = []
    for parts in (1, 2):
        objectives = [replace(photometric(views, weight=Constant(1 / parts)), name=f"part{k}") for k in range(parts)]
        same = [_SameDraws(objective) for objective in objectives]
        with open_run(tmp_path / str(parts)) as run:
            scenes.append(run.stage("fit", fit, VolumeScene(SMALL), same, replace(FAST, steps=3)))
    for one, two in zip(scenes[0].parameters(), scenes[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=0)


@dataclass(frozen=True)
class _SameDraws:
    inner: Photometric
    every: int = 1

    @property
    def name(self):
        return self.inner.name

    @property
    def weight(self):
        return self.inner.weight

    def to(self, device):
        return self

    def shot(self, step, total, generator, device):
        generator.manual_seed(step)
        return self.inner.shot(step, total, generator, device)

    def loss(self, *args):
        return self.inner.loss(*args)


def test_rates_reach_their_groups(views, tmp_path):
    still = FitConfig(steps=2, encoding_rate=0.0, network_rate=0.01, weight_decay=0.0)
    scene = VolumeScene(SMALL)
    with open_run(tmp_path) as run:
        fitted = run.stage("fit", fit, scene, [photometric(views)], still)
    moved = {name: not torch.equal(p, dict(scene.named_parameters())[name]) for name, p in fitted.named_parameters()}
    assert all(change == ("network" in name) for name, change in moved.items()) and any(moved.values())


def test_objectives_need_names_of_their_own(views, tmp_path):
    with pytest.raises(ValueError, match="different names"), open_run(tmp_path) as run:
        run.stage("fit", fit, VolumeScene(SMALL), [photometric(views), photometric(views)], FAST)
