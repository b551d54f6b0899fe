"""`maquette usd`: one picture, seen from any height, to a textured 3D object."""

from __future__ import annotations

from maquette.commands.imagedream import PARALLEL
from maquette.commands.method import Method, run_method
from maquette.methods.usd import Config, configure, usd
from maquette.run.memory import GIB


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes of memory beyond what the libraries take; zeros for priors of unknown cost.

    Measured with the nano priors on one core of an AMD EPYC with AVX-512, in processor seconds (`benchmarks/usd.py`,
    draft): 0.012 a sampled view and evaluation, 0.04 a step of the warm start, 0.09 of the radiance field, 0.1 of the
    specialisation, 0.025 a refined view and step, 0.055 a step of the surface, and 35 for imports, meshing and report.
    """
    if not (config.prior == "nano-zero123" and config.free_prior == "nano"):
        return 0.0, 0
    processor = 35.0 + 0.012 * config.novel.count * config.novel.sampling.evaluations + 0.09 * config.fit.steps
    if pose := config.pose:
        asked = 1 if pose.follow is None else 2
        processor += asked * (0.5 + 0.012 * (len(pose.turns) + len(pose.lifts)) * pose.sampling.evaluations)
    if warm := config.warm_start:
        processor += 0.04 * warm.fit.steps
    if refinement := config.refinement:
        special, translate = refinement.specialize, refinement.translate
        second = special.second.steps if refinement.steps == 2 else 0
        views = config.novel.count + config.renderings.count
        processor += 0.1 * (special.first.steps + second)
        processor += 0.025 * views * translate.strength * translate.sampling.evaluations
    if recovery := config.recovery:
        processor += 0.055 * recovery.fit.steps
    return processor / PARALLEL, 2 * GIB


METHOD = Method(
    "usd",
    "One picture to a textured 3D object, by unbiased score distillation (arXiv:2312.06198).",
    configure,
    usd,
    estimate,
)


def run(arguments: list[str]) -> int:
    """Make the object."""
    return run_method(METHOD, arguments)
