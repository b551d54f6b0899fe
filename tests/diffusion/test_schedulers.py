"""diffusers' schedulers behind our adapter: DDIM is ours, solvers end at the data, scenes are independent."""

from __future__ import annotations

import sys

import pytest
import torch

from maquette.diffusion.sampling import SamplingSteps, ddim, noise_to, unit_noise
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.schedulers import CLASSES, count_steps, make_scheduler, scheduler_updates
from maquette.errors import UserError

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
SCHEDULE = NoiseSchedule.scaled_linear()


def eps_of(x, t):
    """Any smooth prediction of the noise will do for comparing two samplers."""
    return 0.8 * x + 0.1 * torch.sin(3 * x) + (t / 5000.0)[:, None, None, None, None]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(name, *, steps, spacing="trailing", predict=eps_of, predicts="eps", seeds=(0, 1), settings=(), **more):
    scheduler = make_scheduler(name, SCHEDULE, steps, spacing, **dict(settings))
    draws = generators(*seeds)
    noise = unit_noise(draws, torch.empty(len(seeds), 2, 3, 4, 4))(0)
    states = list(scheduler_updates(predict, noise, SCHEDULE, scheduler, generators=draws, predicts=predicts, **more))
    return noise, states


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"'unipc' is diffusers'.*pip install 'maquette\[published\]'.*ddim"):
        make_scheduler("unipc", SCHEDULE, 10)


class TestWithDiffusers:
    """Skipped, naming it, where diffusers is not installed."""

    @pytest.fixture(autouse=True)
    def diffusers(self):
        pytest.importorskip("diffusers", reason="needs diffusers: pip install 'maquette[published]'")

    @pytest.mark.parametrize(
        ("spacing", "make", "settings", "steps"),
        [
            ("leading", SamplingSteps.leading, {"set_alpha_to_one": False, "clip_sample": False}, 7),
            ("leading", SamplingSteps.leading, {"set_alpha_to_one": False, "clip_sample": False}, 50),
            # Where the number does not divide T, its update ends beside the next step of its own list.
            ("trailing", SamplingSteps.exact, {"set_alpha_to_one": True, "clip_sample": False}, 8),
        ],
    )
    def test_its_ddim_is_ours(self, spacing, make, settings, steps):
        noise, states = run("DDIMScheduler", steps=steps, spacing=spacing, settings=settings.items())
        ours = make(SCHEDULE, steps)
        assert [int(state.t[0]) for state in states] == ours.t.tolist()
        torch.testing.assert_close(states[-1].x, ddim(eps_of, noise, ours), atol=2e-4, rtol=2e-4)

    def test_image_to_image_is_ours_too(self):
        image = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
        settings = {"set_alpha_to_one": True, "clip_sample": False}
        noise, states = run("DDIMScheduler", steps=20, settings=settings.items(), image=image, strength=0.33)
        ours = SamplingSteps.exact(SCHEDULE, 20).partial(0.33)
        assert len(states) == len(ours) == count_steps(make_scheduler("DDIMScheduler", SCHEDULE, 20), 0.33) == 6
        torch.testing.assert_close(states[-1].x, ddim(eps_of, noise_to(image, noise, ours), ours), atol=2e-4, rtol=2e-4)
        assert run("euler", steps=20, image=image, strength=0.0)[1] == []

    @pytest.mark.parametrize("name", CLASSES)
    @pytest.mark.parametrize("spacing", ["leading", "trailing"])
    def test_a_network_that_knows_the_answer_is_believed(self, name, spacing):
        """Whatever the steps and the scale that the scheduler keeps its sample in, x0 is what comes out."""
        target = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)
        seen = []

        def predict(x, t):
            seen.append((float(x.std()), int(t[0])))
            return target.expand_as(x)

        _, states = run(name, steps=8, spacing=spacing, predict=predict, predicts="x0")
        torch.testing.assert_close(states[-1].x, target.expand(2, -1, -1, -1, -1), atol=2e-2, rtol=0)
        for deviation, t in seen:
            a = float(SCHEDULE.alphas_cumprod[t])
            expected = (a * float(target.var()) + 1 - a) ** 0.5
            assert deviation == pytest.approx(expected, rel=0.25), "the scale of the forward process at t"

    @pytest.mark.parametrize("name", CLASSES)
    def test_few_steps_come_close_to_many_of_ddim(self, name):
        """On data of which the score is known, a Gaussian, the deterministic ones beat DDIM of as few steps."""
        spread = 0.5

        def predict(x, t):
            alpha, sigma = SCHEDULE.alpha(t, x), SCHEDULE.sigma(t, x)
            return alpha * spread**2 * x / (alpha**2 * spread**2 + sigma**2)

        if name == "euler-ancestral":  # its fresh noise keeps the spread, given enough steps
            _, states = run(name, steps=100, predict=predict, predicts="x0")
            assert float(states[-1].x.std()) == pytest.approx(spread, rel=0.15)
            return
        noise, states = run(name, steps=6, predict=predict, predicts="x0")
        # The exact flow maps x_T to its quantile of the data.
        top = SCHEDULE.alphas_cumprod[-1]
        exact = noise * spread / float((top * spread**2 + 1 - top).sqrt())
        coarse = ddim(predict, noise, SamplingSteps.exact(SCHEDULE, 6), predicts="x0")
        if name != "euler":  # the same first-order step as DDIM's
            assert float((states[-1].x - exact).abs().max()) < float((coarse - exact).abs().max())

    @pytest.mark.parametrize("name", CLASSES)
    def test_a_scene_does_not_depend_on_its_batch(self, name):
        together = run(name, steps=5, seeds=(3, 1, 4))[1][-1].x
        torch.testing.assert_close(run(name, steps=5, seeds=(1,))[1][-1].x, together[1:2], atol=1e-5, rtol=1e-5)
        assert not torch.equal(together[0], together[1])

    @pytest.mark.parametrize("name", CLASSES)
    def test_estimates_can_be_corrected(self, name):
        _, states = run(name, steps=5, correct_x0=lambda x0, t: x0.clamp(-0.1, 0.1))
        assert float(states[-1].x0_pred.abs().max()) <= 0.101 and float(states[-1].x.abs().max()) < 0.2

    def test_unknown_names(self):
        with pytest.raises(UserError, match="no sampler 'plms'; known are ddim, dpm"):
            make_scheduler("plms", SCHEDULE, 5)
