"""The published field is what the released configuration says, and the quick one stays small."""

from __future__ import annotations

import torch

from maquette.cameras import orbit
from maquette.fields import HashGrid, HashGridConfig, LinearBlob
from maquette.rendering import Shot, VolumeScene
from maquette.rendering.presets import imagedream_volume, photometric_volume


def test_the_published_scene():
    config = imagedream_volume()
    assert isinstance(config.field.encoding, HashGridConfig) and isinstance(config.field.bias, LinearBlob)
    grid = HashGrid(config.field.encoding)
    assert (grid.num_levels, grid.num_features, grid.resolutions[0]) == (16, 32, 16)
    assert max(grid.sizes) == 2**19 and abs(grid.resolutions[-1] - 4096) <= 1
    scene = VolumeScene(config)
    # A step of 1.732 x 2 / 512, and density softplus(raw + 10 (1 - |x| / 0.5)): about 10 in the middle of the blob.
    assert abs(scene.step_length - 1.732 * 2 / 512) < 1e-5
    with torch.no_grad():
        middle = scene.field.density(torch.zeros(1, 3)).item()
        corner = scene.field.density(torch.ones(1, 3)).item()
    assert abs(middle - 10) < 0.01 and corner < 1e-9
    networks = {name: tuple(p.shape) for name, p in scene.named_parameters() if "network" in name}
    assert networks == {
        "field.density_network.0.weight": (64, 32),
        "field.density_network.2.weight": (1, 64),
        "field.rgb_network.0.weight": (64, 32),
        "field.rgb_network.2.weight": (3, 64),
        "background.network.0.weight": (16, 9),
        "background.network.2.weight": (16, 16),
        "background.network.4.weight": (3, 16),
    }


def test_the_quick_scene_is_small_and_nearly_empty():
    scene = VolumeScene(photometric_volume())
    assert sum(p.numel() for p in scene.parameters()) < 1_500_000
    seen = scene.render(Shot(orbit(2, height=8, width=8)))
    assert seen.opacity.mean() < 0.35
