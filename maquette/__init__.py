"""maquette: from one picture, a few photos or a sentence to a textured 3D asset.

Names below are imported when first used, so that `import maquette` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maquette.asset import Asset as Asset
    from maquette.asset import Mesh as Mesh
    from maquette.asset import load_mesh as load_mesh
    from maquette.cameras import Cameras as Cameras
    from maquette.cameras import OrbitSampler as OrbitSampler
    from maquette.cameras import fit_distance as fit_distance
    from maquette.cameras import look_at as look_at
    from maquette.cameras import orbit as orbit
    from maquette.errors import RunFailed as RunFailed
    from maquette.errors import UserError as UserError
    from maquette.images import ImagePrompt as ImagePrompt
    from maquette.images import Prompt as Prompt
    from maquette.images import Views as Views
    from maquette.images import read_image as read_image
    from maquette.images import read_prompt as read_prompt
    from maquette.images import save_image as save_image

_PUBLIC = {
    "Asset": "maquette.asset",
    "Mesh": "maquette.asset",
    "load_mesh": "maquette.asset",
    "Cameras": "maquette.cameras",
    "OrbitSampler": "maquette.cameras",
    "fit_distance": "maquette.cameras",
    "look_at": "maquette.cameras",
    "orbit": "maquette.cameras",
    "RunFailed": "maquette.errors",
    "UserError": "maquette.errors",
    "ImagePrompt": "maquette.images",
    "Prompt": "maquette.images",
    "Views": "maquette.images",
    "read_image": "maquette.images",
    "read_prompt": "maquette.images",
    "save_image": "maquette.images",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'maquette' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
