"""NeuS opacity: its laws, the annealing, the cap of s, and its name in VolSDF."""

from __future__ import annotations

import math

import pytest
import torch

from maquette.errors import UserError
from maquette.rendering.sharpness import Cap, Sharpness, neus_alpha, volsdf_density
from maquette.rendering.volume import weights_from_alpha

S = torch.tensor(60.0, dtype=torch.float64)


def along_a_ray(cosine: float, step: float = 0.002) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of samples on a ray that meets a plane at 0 under `cosine`, and where they are."""
    reach = 0.18 / abs(cosine)  # six standard deviations; further out the guard of 1e-5 a sample adds up
    t = torch.arange(-reach, reach, step, dtype=torch.float64) + step / 2
    return cosine * t, t


@pytest.mark.parametrize("cosine", [-1.0, -0.5, -0.2])
def test_the_weight_is_unbiased_it_peaks_on_the_surface(cosine):
    sdf, t = along_a_ray(cosine)
    weights, _ = weights_from_alpha(neus_alpha(sdf, torch.full_like(sdf, cosine), 0.002, S))
    assert weights.sum() == pytest.approx(1, abs=1e-2)
    assert abs(float(t[weights.argmax()])) <= 0.002
    assert float((weights * t).sum()) == pytest.approx(0, abs=5e-3)
    # The logistic distribution's standard deviation is pi / (sqrt(3) s).
    spread = float((weights * t.square()).sum().sqrt())
    assert spread == pytest.approx(math.pi / (math.sqrt(3) * 60 * abs(cosine)), rel=0.1)


def test_light_that_passes_is_what_the_logistic_function_says():
    """T(f) = Phi(s f): what the occupancy grid drops space by."""
    sdf, _ = along_a_ray(-1.0)
    _, trans = weights_from_alpha(neus_alpha(sdf, torch.full_like(sdf, -1.0), 0.002, S))
    torch.testing.assert_close(trans, (S * (sdf + 0.001)).sigmoid(), rtol=0.02, atol=0.01)


def test_a_ray_that_leaves_is_transparent_once_annealed():
    sdf = torch.linspace(-0.05, 0.05, 11, dtype=torch.float64)
    leaving = torch.full_like(sdf, 0.8)
    # What is left is the guard of 1e-5 against a division by zero.
    assert neus_alpha(sdf, leaving, 0.01, S)[5:].max() < 1e-4
    assert neus_alpha(sdf, leaving, 0.01, S, annealed=0.0)[5] > 0.02
    half = neus_alpha(sdf, leaving, 0.01, S, annealed=0.5)[5]
    assert neus_alpha(sdf, leaving, 0.01, S)[5] < half < neus_alpha(sdf, leaving, 0.01, S, annealed=0.0)[5]


def test_opacities_lie_between_nothing_and_all():
    sdf = torch.linspace(-3, 3, 401)
    for cosine in (-1.0, -0.3, 0.0, 0.7):
        for s in (1e-3, 20.0, 1e6):
            alpha = neus_alpha(sdf, torch.full_like(sdf, cosine), 0.02, torch.tensor(s))
            assert torch.isfinite(alpha).all() and alpha.min() >= 0 and alpha.max() <= 1


def test_volsdf_density_is_the_laplace_distribution():
    sdf = torch.tensor([-2.0, -0.01, 0.0, 0.01, 2.0], dtype=torch.float64)
    density = volsdf_density(sdf, 50.0)
    assert density[2] == pytest.approx(25) and density[0] == pytest.approx(50) and density[4] == pytest.approx(0)
    assert float(density[1] + density[3]) == pytest.approx(50)
    assert volsdf_density(sdf[2], 500.0) == pytest.approx(40)  # s is limited to 80


def test_s_begins_at_twenty_and_can_be_learned():
    sharpness = Sharpness()
    assert float(sharpness().detach()) == pytest.approx(math.exp(3))
    sharpness().backward()
    assert float(sharpness.variance.grad) == pytest.approx(10 * math.exp(3), rel=1e-5)


def test_a_cap_rises_from_what_s_was_and_is_kept(tmp_path):
    cap = Cap(highest=400.0, start=0.25, reach=0.5)
    sharpness = Sharpness(0.4, cap)
    sharpness.update(25, 100)
    assert sharpness.limit == math.inf
    with torch.no_grad():
        sharpness.variance.fill_(0.7)
    sharpness.update(40, 100)
    begun = math.exp(4)
    assert float(sharpness().detach()) == pytest.approx(begun + 0.8 * (400 - begun), rel=1e-5)
    again = Sharpness(0.4, cap)
    again.load_state_dict(sharpness.state_dict())
    assert torch.equal(again(), sharpness())
    again.update(90, 100)
    assert float(again().detach()) == pytest.approx(400)
    for wrong in ({"highest": 0.0}, {"highest": 1.0, "reach": 0.0}):
        with pytest.raises(UserError):
            Cap(**wrong)
