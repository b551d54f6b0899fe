"""Cases of the USD goldens: Zero-1-to-3, unbiased score distillation, NeuS, and the metrics beside them.

Each module of this folder has the list `KINDS` of the cases that it knows.
"""

from tests.parity.golden import Kind
from tests.parity.usd import (
    cameras,
    distillation,
    formulas,
    neus,
    patches,
    refinement,
    volume,
    zero123_guidance,
    zero123_networks,
    zero123_steps,
    zero123_values,
)

KINDS: list[Kind] = [
    *neus.KINDS,
    *volume.KINDS,
    *zero123_networks.KINDS,
    *zero123_steps.KINDS,
    *zero123_guidance.KINDS,
    *zero123_values.KINDS,
    *formulas.KINDS,
    *cameras.KINDS,
    *patches.KINDS,
    *distillation.KINDS,
    *refinement.KINDS,
    # One module a line: *module.KINDS
]
