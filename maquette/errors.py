"""The two ways a run ends badly: the person can fix it, or the machine could not do it."""

from __future__ import annotations


class UserError(ValueError):
    """An input or an option is wrong; the message is one sentence that names it and says what to do (exit code 2)."""


class RunFailed(RuntimeError):
    """The work could not finish (memory, disk, NaN): one sentence; what was done so far is kept (exit code 1)."""
