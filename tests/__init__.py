"""Tests, in the order of the package; `python -m tests.parity FOLDER` compares with recorded reference numbers."""
