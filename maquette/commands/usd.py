"""`maquette usd`: one picture, seen from any height, to a textured 3D object."""

from __future__ import annotations

from maquette.commands.method import Method, run_method
from maquette.methods.usd import Config, configure, usd
from maquette.run.memory import GIB


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes of memory beyond what the libraries take; zeros for priors of unknown cost."""
    if not (config.prior == "nano-zero123" and config.free_prior == "nano"):
        return 0.0, 0
    return 100.0, GIB


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
