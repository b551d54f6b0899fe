"""Photos of a subject that is known from all sides: renders of an object over made-up backgrounds.

DreamBooth3D is judged on photos of things that nobody has measured. A stand-in is an object of a data pack instead,
"photographed" from a few sides, at different distances, in different light, before different backgrounds, so that the
result can be compared with the object itself. The photos hold no mask and no camera; `stand_in.json` beside them says
what they show, for the evaluation alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import fit_distance, from_angles
from maquette.errors import UserError
from maquette.rendering.lighting import Light, Lighting
from maquette.rendering.raster import MeshRenderer
from maquette.run.files import write_json
from maquette.run.fingerprints import file_sha256

ACCOUNT = "stand_in.json"


@dataclass(frozen=True)
class StandIn:
    """What a folder of stand-in photos shows."""

    id: str
    noun: str
    """The class, for --subject."""
    description: str
    """The subject in words, as nobody tells the method."""
    object: Path
    """The mesh file."""
    sha256: str
    """Of that file."""

    @classmethod
    def read(cls, folder: Path, objects: Path | None = None) -> StandIn | None:
        """The account in a folder of photos; None where the photos are real. `objects` says where the mesh is now.

        UserError where the mesh is missing or another one.
        """
        path = folder / ACCOUNT
        if not path.is_file():
            return None
        values = json.loads(path.read_text("utf-8"))
        place = Path(values["object"])
        found = (objects or place.parent) / place.name
        if not found.is_file():
            raise UserError(f"{folder} stands in for {found}, which is not there; say where it is with --objects")
        if file_sha256(found) != values["sha256"]:
            raise UserError(f"{found} is another object than the one that {folder} shows")
        return cls(values["id"], values["noun"], values["description"], found, values["sha256"])


def make_stand_in(
    mesh: Mesh,
    folder: Path,
    *,
    id: str,
    noun: str,
    description: str,
    object: Path,
    azimuths: Sequence[float] = (-20.0, 35.0, 100.0, 190.0, -80.0),
    size: int = 384,
    seed: int = 0,
) -> list[Path]:
    """Write one photo an azimuth (degrees), JPEG, and the account of what they show; the photos' paths.

    Elevation, distance, turn of the camera, light and background differ from photo to photo and depend on the seed.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    renderer = MeshRenderer(mesh.normalized())
    paths = []
    for number, azimuth in enumerate(azimuths):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        draw = torch.rand(8, generator=generator).tolist()
        distance = fit_distance(40.0, fill=0.6 + 0.25 * draw[0])
        turn, height = azimuth + 10 * (draw[1] - 0.5), 5.0 + 25.0 * draw[2]
        camera = from_angles(
            torch.tensor([turn]), torch.tensor([height]), torch.tensor([distance]), torch.tensor([40.0]),
            height=size, width=size,
        )  # fmt: skip
        light = Lighting(0.75, (Light(turn + 120 * (draw[3] - 0.5), 55.0, 0.35),))
        rgba = renderer.render(camera, lighting=light, samples=2).rgba[0].movedim(-1, 0)
        picture = rgba[3:] * rgba[:3] + (1 - rgba[3:]) * backdrop(size, generator)
        path = folder / f"{number:02d}.jpg"
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(path, quality=88)
        paths.append(path)
    account = {"id": id, "noun": noun, "description": description, "object": str(object), "seed": seed}
    write_json(folder / ACCOUNT, {**account, "sha256": file_sha256(object)})
    return paths


def backdrop(size: int, generator: torch.Generator) -> Float[Tensor, "3 s s"]:
    """A wall and a floor, softly uneven, each of one muted colour."""
    wall, floor = 0.35 + 0.5 * torch.rand(2, 1, generator=generator) + 0.12 * torch.randn(2, 3, generator=generator)
    horizon = 0.45 + 0.25 * float(torch.rand((), generator=generator))
    rows = torch.arange(size, dtype=torch.float32)[:, None].expand(size, size) / size
    below = torch.sigmoid((rows - horizon) * 60)
    picture = (1 - below) * wall[:, None, None] + below * floor[:, None, None]
    coarse = torch.randn(1, 1, 6, 6, generator=generator)
    clouds = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)[0]
    grain = torch.from_numpy(np.asarray(torch.randn(1, size, size, generator=generator)))
    return (picture + 0.03 * clouds + 0.01 * grain).clamp(0, 1)
