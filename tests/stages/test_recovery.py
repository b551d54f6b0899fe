"""Pictures become a mesh: the published settings, and the quick ones on an object of the validation pack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maquette.asset import load_mesh
from maquette.cameras import Cameras, orbit
from maquette.evaluation.truth import Protocol, Truth
from maquette.fields import HashGridConfig
from maquette.rendering import SurfaceScene, render_mesh
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.fit import fit
from maquette.stages.objectives import Photometric, RandomRays
from maquette.stages.recovery import RecoveryConfig, quick_recovery
from maquette.stages.surface import make_mesh


def test_the_defaults_are_those_of_the_published_configuration():
    """usd.md, section 4.1."""
    config = RecoveryConfig()
    scene, settings = config.scene, config.fit
    assert scene.field.encoding == HashGridConfig(16, 2, 19, 32, 1.3195079107728942)
    assert (scene.field.hidden, scene.field.layers, scene.field.features, scene.field.sphere) == (64, 1, 13, 0.5)
    assert (scene.variance, scene.samples.value, scene.occupancy.resolution) == (0.3, 1024, 128)
    assert scene.anneal.at(5000, 20_000) == 0.25 and scene.occupancy.threshold == 0.001
    rates = [settings.rate.at(step, 20_000) * settings.network_rate for step in (0, 250, 500, 20_000)]
    assert rates == pytest.approx([1e-4, 5.05e-3, 1e-2, 1e-3])
    assert settings.steps == 20_000 and settings.other_rate == 1e-3 and settings.eps == 1e-15
    weights = config.photometric
    assert (weights.rgb.value, weights.mask.value, weights.regularizers.eikonal.value) == (10.0, 0.1, 0.1)
    assert weights.measure == "l2" and weights.mask_measure == "entropy"


def test_the_quick_settings_find_a_box_in_a_tenth_of_their_steps(objects_val, tmp_path):
    truth = Truth.of(
        load_mesh(objects_val / "ycb__004_sugar_box.glb"),
        Protocol(view_size=32, num_points=2000, resolution=48),
        0,
        "box",
    )
    rings = [orbit(4, elevation=e, azimuth=a, height=40, width=40) for e, a in ((5, 0), (35, 45), (-20, 20))]
    views = render_mesh(truth.mesh, Cameras.cat(rings), samples=2).views()
    config = quick_recovery()
    photometric = replace(config.photometric, pixels=RandomRays(400))
    scene = replace(config.scene, samples=Constant(96), occupancy=replace(config.scene.occupancy, resolution=32))
    mesh = replace(config.mesh, resolution=64, max_faces=4000, texture_size=256, unwrap_seconds=0)
    with Run.open(tmp_path, seed=0, device="cpu", quiet=True) as run:
        fitted = run.stage(
            "surface", fit, SurfaceScene(scene, 0), [Photometric(views, photometric)], replace(config.fit, steps=60)
        )
        made = run.stage("mesh", make_mesh, fitted, mesh, views, config.projection)
    figures = truth.score(made)
    assert made.is_watertight
    # The sphere that it began as overlaps the box by 0.4.
    assert figures["volume_iou_unnormalised"] > 0.6 and figures["chamfer_unnormalised"] < 0.06
    assert figures["psnr"] > 15
