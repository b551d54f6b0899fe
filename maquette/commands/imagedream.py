"""`maquette imagedream`: one picture to a textured 3D object."""

from __future__ import annotations

from maquette.commands.method import Method, run_method
from maquette.methods.imagedream import Config, configure, imagedream
from maquette.run.memory import GIB

PARALLEL = 1.4
"""Processor seconds that two cores give in a second of this method, imports and single-threaded parts included."""


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes of memory beyond what the libraries take; zeros for priors of unknown cost.

    Measured with the nano prior on one core of an Intel Xeon with AVX-512: 0.10 s a sampling step, 0.085 s a step of
    the warm start, 0.46 s a step of the distillation, 15 s for the prompt's camera, 30 s for imports, mesh and report.
    """
    if config.prior != "nano":
        return 0.0, 0
    warm = config.warm_start
    processor = 0.10 * config.sampling.evaluations * (warm.rings if warm else 1) + 0.46 * config.fit.steps + 30.0
    processor += (0.085 * warm.fit.steps if warm else 0.0) + (15.0 if config.prompt_view else 0.0)
    return processor / PARALLEL, round(1.5 * GIB)


METHOD = Method(
    "imagedream",
    "One picture to a textured 3D object, by image-prompt multi-view diffusion (arXiv:2312.02201).",
    configure,
    imagedream,
    estimate,
)


def run(arguments: list[str]) -> int:
    """Make the object."""
    return run_method(METHOD, arguments)
