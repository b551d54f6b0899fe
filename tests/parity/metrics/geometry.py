"""geometry: Chamfer conventions, F-scores, normalisations, volumes, voxel counts, and closed forms of ideal shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maquette.evaluation import geometry, voxels
from tests.parity.golden import EXACT, Checks, Golden, Kind, has
from tests.parity.metrics import solids
from tests.parity.metrics.numbers import FORMULA, QUADRATURE, SINGLE, expected, facts, tell

Array = NDArray[Any]
POINT_SETS = {
    "sampled_concentric_spheres": ("sphere_samples_A", "sphere_samples_B"),
    "sampled_same_sphere_noise_floor": ("sphere_samples_A", "sphere_samples_A2"),
}
NORMALISATIONS: dict[str, Callable[[Array], geometry.Placement]] = {
    "scale_to_unit_longest_side": geometry.longest_side,
    "scale_to_half_diagonal_one": geometry.half_diagonal,
    "scale_to_unit_sphere_about_bbox_center": geometry.bounding_sphere,
}


def expects(golden: Golden) -> Checks:
    values = facts(golden, instead="geometry_metrics")
    return expected(golden, values, lambda name: False, arrays=lambda name: name.endswith("_unit_longest_side"))


def run(golden: Golden, checks: Checks) -> None:
    """Sections of the JSON, each by what its name says."""
    values = facts(golden, instead="geometry_metrics")
    for name, section in values.items():
        if name in POINT_SETS or re.fullmatch(r"pointclouds_[A-Z]{2}", name):
            first, second = POINT_SETS.get(name, tuple(name[-2:]))
            distances(checks, name, section, _array(golden, first), _array(golden, second))
        elif match := re.fullmatch(r"normalise_(\w+)", name):
            normalisations(checks, name, match[1], _array(golden, match[1]))
        elif name.startswith("iou_"):
            overlap(golden, checks, name)
        elif f"{name}_v" in golden.tensors:
            mesh = _mesh(golden, name)
            tell(checks, f"{name}.area", geometry.surface_area(*mesh))
            tell(checks, f"{name}.volume", geometry.enclosed_volume(*mesh))
            tell(checks, f"{name}.n_vertices", len(mesh[0]), EXACT)
            tell(checks, f"{name}.n_faces", len(mesh[1]), EXACT)
        elif name.startswith("analytic_"):
            for index, case in enumerate(section):
                for key, value in solids.closed_form(case["case"]).items():
                    # Means over a cube and a sphere were recorded by quadrature.
                    tell(checks, f"{name}.{index}.{key}", value, QUADRATURE if "cube" in case["case"] else FORMULA)


def distances(checks: Checks, name: str, section: dict[str, Any], p: Array, q: Array) -> None:
    """Every convention of the distance between two point sets."""
    d = geometry.PointDistances.between(p, q)
    # Samples stored in float32 carry their own rounding, not our arithmetic's.
    limit = FORMULA if p.dtype == np.float64 else SINGLE
    figures = {
        "cd_l1_half_sum": d.cd_l1,
        "cd_l1_sum": d.cd_l1_sum,
        "cd_l2_half_sum": d.cd_l2_half,
        "cd_l2_sum": d.cd_l2,
        "hausdorff_symmetric": d.hausdorff,
        "mean_p_to_q": d.p_to_q.mean(),
        "mean_q_to_p": d.q_to_p.mean(),
        "meansq_p_to_q": (d.p_to_q**2).mean(),
        "meansq_q_to_p": (d.q_to_p**2).mean(),
    }
    figures |= {key: d.fscore(float(key.removeprefix("fscore_"))) for key in section if key.startswith("fscore_")}
    for key, value in figures.items():
        tell(checks, f"{name}.{key}", value, limit)
    if "continuous_cd_l1_half_sum" in section:
        # The limit of infinitely many samples: both are spheres around one centre, whose radii the samples tell.
        radii = [float(np.linalg.norm(points.astype(np.float64), axis=1).mean()) for points in (p, q)]
        form = solids.closed_form(f"concentric spheres radii {radii[0]:.4f} and {radii[1]:.4f}")
        tell(checks, f"{name}.continuous_cd_l1_half_sum", form["cd_l1_half_sum"])


def normalisations(checks: Checks, name: str, points_name: str, points: Array) -> None:
    """Scale factors, and the points placed by the benchmark's normalisation."""
    low, high = geometry.bounding_box(points)
    tell(checks, f"{name}.bbox_center", (low + high) / 2)
    tell(checks, f"{name}.bbox_max_extent", (high - low).max())
    for key, normalise in NORMALISATIONS.items():
        tell(checks, f"{name}.{key}", normalise(points).scale)
    tell(checks, f"{points_name}_unit_longest_side", geometry.longest_side(points)(points))


def overlap(golden: Golden, checks: Checks, name: str) -> None:
    """Voxel counts, exactly, and the overlap of the polyhedra and of the ideal shapes that they stand for."""
    named = [part for part in name.split("_")[1:] if f"{part}_v" in golden.tensors]
    first, second = (_mesh(golden, part) for part in (named * 2)[:2])
    for resolution in sorted({int(m[1]) for key in checks.expected if (m := re.match(rf"{name}\.voxel(\d+)_", key))}):
        grid = voxels.Grid(resolution)
        a, b = (voxels.winding_occupancy(*mesh, grid) for mesh in (first, second))
        prefix = f"{name}.voxel{resolution}"
        tell(checks, f"{prefix}_count_1", int(a.sum()), EXACT)
        tell(checks, f"{prefix}_count_2", int(b.sum()), EXACT)
        tell(checks, f"{prefix}_intersection", int((a & b).sum()), EXACT)
        tell(checks, f"{prefix}_union", int((a | b).sum()), EXACT)
        tell(checks, f"{prefix}_iou", voxels.voxel_iou(a, b))
    common = solids.intersection_volume(first, second)
    total = sum(geometry.enclosed_volume(*mesh) for mesh in (first, second))
    tell(checks, f"{name}.polyhedral_intersection_volume", common)
    tell(checks, f"{name}.polyhedral_iou", common / (total - common))
    tell(checks, f"{name}.smooth_shape_iou", solids.smooth_iou(first, second))


def _array(golden: Golden, name: str) -> Array:
    tensor: Tensor = golden.tensors[name]
    return tensor.numpy()


def _mesh(golden: Golden, name: str) -> tuple[Array, Array]:
    return _array(golden, f"{name}_v").astype(np.float64), _array(golden, f"{name}_f")


KIND = Kind("geometry", has("P", "Q"), run, expects)
