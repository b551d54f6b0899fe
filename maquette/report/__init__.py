"""One page per run that explains the result to whoever made it, and the same page live while the run works.

Names below are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maquette.report.live import write_live as write_live
    from maquette.report.page import write_report as write_report
    from maquette.report.turntable import write_turntable as write_turntable

_PUBLIC = {
    "write_live": "maquette.report.live",
    "write_report": "maquette.report.page",
    "write_turntable": "maquette.report.turntable",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'maquette.report' has no attribute {name!r}")
