"""Cases of the USD goldens: Zero-1-to-3, unbiased score distillation, NeuS, and the metrics beside them.

Each module of this folder has the list `KINDS` of the cases that it knows.
"""

from tests.parity.golden import Kind

KINDS: list[Kind] = [
    # One module a line: *module.KINDS
]
