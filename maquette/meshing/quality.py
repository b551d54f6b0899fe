"""Numbers that say whether a mesh is fit for use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maquette.asset import Mesh
from maquette.meshing.clean import Floaters, component_of_faces


@dataclass(frozen=True)
class MeshQuality:
    """What the report says about a mesh; counts are of the surface welded at equal positions."""

    faces: int
    vertices: int
    components: int
    watertight: bool
    """Closed and consistently wound."""
    volume: float
    """Enclosed volume, cubic scene units; negative if wound inwards, without meaning if not watertight."""
    area: float
    """Squared scene units."""
    degenerate_faces: int
    """Faces of (nearly) no area: below 1e-10 of the squared diagonal of the bounding box."""
    non_manifold_edges: int
    """Edges with more than two faces."""
    border_edges: int
    """Edges with one face."""
    uv_coverage: float
    """Part of the texture that faces cover, in [0, 1]; 0 without uv."""
    floaters_removed: int = 0
    floater_area_share: float = 0.0
    floater_volume_share: float = 0.0
    threshold: float | None = None
    """Density (or signed distance) on the surface."""
    silhouette_iou: float | None = None
    """How well the surface matches the volume's silhouettes, where the threshold was chosen by them."""
    unwrap: str = ""
    """The unwrapping that made the uv: "xatlas" or "box"."""
    notes: tuple[str, ...] = ()
    """What did not go the usual way, in sentences."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "notes": list(self.notes)}

    def save(self, folder: str | Path) -> None:
        """Write `quality.json` into `folder`."""
        from maquette.run.files import write_json

        write_json(Path(folder) / "quality.json", self.as_dict())

    @classmethod
    def load(cls, folder: str | Path) -> MeshQuality:
        """Read what `save` wrote."""
        import json

        values = json.loads((Path(folder) / "quality.json").read_text(encoding="utf-8"))
        return cls(**{**values, "notes": tuple(values["notes"])})


def measure_mesh(mesh: Mesh, *, floaters: Floaters | None = None, **known: Any) -> MeshQuality:
    """The quality of `mesh`; `known` fills the fields that a mesh cannot tell (threshold, unwrap, notes ...)."""
    faces = mesh.position_index()[mesh.faces]
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges = edges[edges[:, 0] != edges[:, 1]]
    _, uses = np.unique(edges, axis=0, return_counts=True)
    areas = mesh.face_areas()
    diagonal = float(np.linalg.norm(mesh.bounds[1] - mesh.bounds[0]))
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    return MeshQuality(
        faces=len(faces),
        vertices=len(np.unique(faces)),
        components=len(np.unique(component_of_faces(faces, len(mesh.vertices)))),
        watertight=mesh.is_watertight,
        volume=float(volume),
        area=float(areas.sum()),
        degenerate_faces=int((areas < 1e-10 * diagonal**2).sum()),
        non_manifold_edges=int((uses > 2).sum()),
        border_edges=int((uses == 1).sum()),
        uv_coverage=_uv_coverage(mesh),
        floaters_removed=0 if floaters is None else floaters.count,
        floater_area_share=0.0 if floaters is None else floaters.area_share,
        floater_volume_share=0.0 if floaters is None else floaters.volume_share,
        **known,
    )


def _uv_coverage(mesh: Mesh) -> float:
    if mesh.uv is None:
        return 0.0
    a, b, c = (mesh.uv[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    ab, ac = b - a, c - a
    return float(min(np.abs(ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]).sum() / 2, 1.0))
