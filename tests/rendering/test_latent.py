"""A field of latents renders them as a volume renders colours."""

from __future__ import annotations

import torch

from maquette.cameras import orbit
from maquette.rendering.base import Scene, Shot
from maquette.rendering.latent import LatentConfig, LatentScene
from tests.stages.test_fit import SMALL


def scene(channels: int = 5) -> LatentScene:
    made = LatentScene(LatentConfig(SMALL, channels, hidden=8), seed=3)
    with torch.no_grad():
        made.behind.copy_(torch.arange(channels) / 10)
    return made


def test_latents_are_composited_as_the_volume_is():
    made = scene()
    assert isinstance(made, Scene)
    rendering = made.render(Shot(orbit(2, height=6, width=7)))
    assert rendering.latents.shape == (2, 6, 7, 5)
    samples = rendering.samples
    values = made.head(made.volume.field.encoding(samples.positions))
    expected = torch.zeros(84, 5)
    for ray, weight, value in zip(samples.ray_index, samples.weights, values, strict=True):
        expected[ray] += weight * value  # the slow twin
    expected = expected.reshape(2, 6, 7, 5) + (1 - rendering.opacity) * made.behind
    torch.testing.assert_close(rendering.latents, expected)


def test_all_parameters_learn_from_latents():
    made = scene()
    made.render(Shot(orbit(2, height=6, width=6))).latents.square().sum().backward()
    groups = made.parameter_groups()
    assert groups["background"][0].grad.abs().sum() > 0
    assert made.head[0].weight.grad.abs().sum() > 0
    assert made.volume.field.density_network[0].weight.grad.abs().sum() > 0
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in made.parameters()}


def test_it_survives_the_disk(tmp_path):
    made = scene()
    (tmp_path / "scene").mkdir()
    made.save(tmp_path / "scene")
    again = LatentScene.load(tmp_path / "scene")
    assert again.fingerprint() == made.fingerprint() != scene(4).fingerprint()
    shot = Shot(orbit(1, height=5, width=5))
    assert torch.equal(again.render(shot).latents, made.render(shot).latents)
