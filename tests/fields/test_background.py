"""Backgrounds: orthonormal harmonics, colours in range, derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from maquette.errors import UserError
from maquette.fields.background import (
    FlatBackgroundConfig,
    LearnedBackground,
    LearnedBackgroundConfig,
    build_background,
    spherical_harmonics,
)


def sphere(count: int) -> torch.Tensor:
    """Directions that cover the sphere evenly (a golden spiral)."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * k / count
    angle = k * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)


def test_harmonics_are_orthonormal():
    values = spherical_harmonics(sphere(20_000))
    gram = values.t() @ values * (4 * math.pi / 20_000)
    torch.testing.assert_close(gram, torch.eye(9, dtype=torch.float64), atol=1e-4, rtol=0)


def test_harmonics_of_one_degree_sum_to_a_constant():
    """Unsoeld's theorem: sum over m of Y_lm^2 = (2 l + 1) / 4 pi in every direction."""
    values = spherical_harmonics(sphere(50)).square()
    for degree, columns in enumerate((slice(0, 1), slice(1, 4), slice(4, 9))):
        expected = torch.full((50,), (2 * degree + 1) / (4 * math.pi), dtype=torch.float64)
        torch.testing.assert_close(values[:, columns].sum(1), expected)


def test_learned_background_is_a_smooth_colour():
    torch.manual_seed(0)
    background = build_background(LearnedBackgroundConfig()).double()
    directions = sphere(30).reshape(5, 6, 3)
    colours = background(directions)
    assert colours.shape == (5, 6, 3) and ((colours > 0) & (colours < 1)).all() and colours.std() > 0
    assert isinstance(background, LearnedBackground)
    assert [tuple(p.shape) for p in background.parameters()] == [(16, 9), (16, 16), (3, 16)]
    small = LearnedBackground(LearnedBackgroundConfig(4, 1)).double()
    assert torch.autograd.gradcheck(small, sphere(4).requires_grad_())


def test_flat_background_is_flat_and_has_nothing_to_learn():
    background = build_background(FlatBackgroundConfig((0.1, 0.2, 0.3)))
    assert torch.equal(background(torch.randn(2, 4, 3)), torch.tensor([0.1, 0.2, 0.3]).expand(2, 4, 3))
    assert not list(background.parameters())


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match=r"lies in \[0, 1\]"):
        FlatBackgroundConfig((0.0, 0.0, 1.5))
    with pytest.raises(UserError, match="hidden, layers"):
        LearnedBackgroundConfig(layers=0)
