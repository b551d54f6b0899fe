"""The workbench: run folders that can be killed and resumed, seeded stages, logs, progress, memory.

Names below are imported when first used, so that asking for the memory left does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maquette.errors import RunFailed as RunFailed
    from maquette.errors import UserError as UserError
    from maquette.run.fingerprints import file_sha256 as file_sha256
    from maquette.run.fingerprints import fingerprint as fingerprint
    from maquette.run.progress import Progress as Progress
    from maquette.run.record import read_log as read_log
    from maquette.run.run import Run as Run
    from maquette.run.run import StageTime as StageTime
    from maquette.run.run import resolve_device as resolve_device
    from maquette.run.stage import Stage as Stage
    from maquette.run.stage import derive_seed as derive_seed

_PUBLIC = {
    "Progress": "maquette.run.progress",
    "Run": "maquette.run.run",
    "RunFailed": "maquette.errors",
    "Stage": "maquette.run.stage",
    "StageTime": "maquette.run.run",
    "UserError": "maquette.errors",
    "derive_seed": "maquette.run.stage",
    "file_sha256": "maquette.run.fingerprints",
    "fingerprint": "maquette.run.fingerprints",
    "read_log": "maquette.run.record",
    "resolve_device": "maquette.run.run",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'maquette.run' has no attribute {name!r}")
