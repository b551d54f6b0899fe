"""From a field to a surface: sample a grid, choose the level, march the cubes, put the vertices where the field says.

Naming: `level` is the value on the surface; inside is where a density lies above it, or a signed distance below it.
Grid nodes stand at -1 + 2 i / resolution, i = 0..resolution, along each axis of the volume [-1, 1]^3; `values[i, j, k]`
belongs to (x, y, z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import Cameras, orbit
from maquette.errors import RunFailed
from maquette.images import Views
from maquette.meshing.outline import held_to_outline
from maquette.meshing.rays import largest_along_rays

Inside = Literal["above", "below"]
FieldFunction = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n *c"]]
Silhouettes = Callable[[Cameras], Tensor]
"""Cameras [V] -> opacity in [0, 1], shape [V, H, W] with an optional channel axis of one, first or last."""


@dataclass(frozen=True)
class Level:
    """The level of a surface and how well its silhouettes match the volume's own."""

    value: float
    silhouette_iou: float | None = None
    """Mean over the views; None where the level was given."""


def sample_grid(
    field: FieldFunction, resolution: int, *, chunk: int = 1 << 18, device: torch.device | str = "cpu"
) -> Float32[np.ndarray, "n n n"]:
    """Values of `field` at the (resolution + 1)^3 nodes of the grid over [-1, 1]^3, evaluated `chunk` points at a time.

    No gradients are recorded. Raises RunFailed where a value is not finite, naming the first such point.
    """
    if resolution < 2:
        raise ValueError(f"resolution expects at least 2 cells a side, got {resolution}")
    axis = torch.linspace(-1, 1, resolution + 1)
    count = resolution + 1
    values = torch.empty(count**3)
    plane = count * count
    step = max(1, chunk // plane)  # whole x-slabs
    with torch.no_grad():
        for start in range(0, count, step):
            x = axis[start : start + step]
            points = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
            answer = torch.cat([_scalar(field, part.to(device)) for part in points.split(chunk)])
            if not torch.isfinite(answer).all():
                bad = points[int((~torch.isfinite(answer)).nonzero()[0, 0])].tolist()
                raise RunFailed(f"the field is not finite at {bad}; it cannot be meshed")
            values[start * plane : start * plane + len(points)] = answer
    return values.reshape(count, count, count).numpy()


def extract_mesh(
    field: FieldFunction,
    resolution: int = 128,
    threshold: float | Literal["auto"] = "auto",
    *,
    silhouettes: Silhouettes | None = None,
    inside: Inside = "above",
    fill_cavities: bool = True,
    fill_pits: bool = False,
    blur: float = 0.0,
    outline: Views | None = None,
    bisections: int = 4,
    chunk: int = 1 << 18,
    device: torch.device | str = "cpu",
) -> tuple[Mesh, Level]:
    """The surface of a density (inside "above") or signed distance ("below") in [-1, 1]^3, closed and wound outwards.

    `threshold="auto"` is 0 for a signed distance; for a density it is `choose_level`, which needs `silhouettes`. Where
    the inside reaches the border of the volume, the surface is closed by the border. `fill_cavities` counts empty space
    that cannot be reached from outside as inside: a density is often hollow, and nobody will see those walls;
    `fill_pits` what cannot be reached at its own height, into which no camera near the horizon looks. `blur`
    scene units take away what is finer (see `blurred`), `outline` is one view whose mask the surface is then held to
    (`meshing/outline.py`; densities alone). `bisections` steps move each vertex along its grid edge onto the level of
    the field itself, where neither was asked for. The mesh has no colour yet. Raises RunFailed for an empty result,
    saying what range the field has.
    """
    values = sample_grid(field, resolution, chunk=chunk, device=device)
    if threshold == "auto":
        if inside == "below":
            level = Level(0.0)
        elif silhouettes is None:
            raise ValueError(
                'threshold="auto" of a density compares silhouettes: pass `silhouettes`, or a number as threshold'
            )
        else:
            level = choose_level(values, silhouettes)
    else:
        level = Level(float(threshold))
    sign = 1.0 if inside == "above" else -1.0
    heights = sign * (values - np.float32(level.value))  # positive inside
    if not (heights > 0).any():
        raise RunFailed(
            f"no surface at level {level.value:g}: the field ranges over {values.min():g}..{values.max():g}; "
            "choose a threshold in between, or fit the field longer"
        )
    filled = fill_hollows(heights) if fill_cavities else heights
    filled = fill_hollows(filled, level_by_level=True) if fill_pits else filled
    bounded = inside == "above" and level.value > 0
    if outline is not None and not bounded:
        raise ValueError("only a density at a level above 0 is held to an outline")
    if blur > 0 or outline is not None:
        soft = blurred(filled, blur, level.value if bounded else float("inf"))
        if not (soft > 0).any():
            raise RunFailed(f"nothing of the surface is left by a blur of {blur:g} scene units; blur it less")
        if outline is not None:
            held = held_to_outline(soft / np.float32(level.value), outline)
            soft = fill_hollows(held) if fill_cavities else held
            if not (soft > 0).any():
                raise RunFailed("nothing of the surface lies within the picture's outline; fit the field longer")
        return march(soft), level

    def height_of(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        with torch.no_grad():
            parts = torch.from_numpy(points).split(chunk)
            answer = torch.cat([_scalar(field, part.to(device)) for part in parts]).numpy()
        return sign * (answer - np.float32(level.value))

    return march(filled, refine=height_of if bisections else None, bisections=bisections), level


def choose_level(
    values: Float[np.ndarray, "n n n"],
    silhouettes: Silhouettes,
    *,
    views: int = 12,
    size: int = 64,
    tolerance: float = 0.002,
    preferred: float = 10.0,
) -> Level:
    """The density level whose surface best matches the volume's own silhouettes over `views` cameras.

    A ray meets {density > level} exactly if the largest density along it exceeds the level, so one pass of maxima gives
    the silhouettes of *every* level at once. With opacity o of the volume rendering, the score of a level is the soft
    intersection over union sum_{max > level} o / (sum_{max > level} 1 + sum_{max <= level} o), averaged over the views.
    Sharp fields score alike over a wide range; of the levels around the best that come within `tolerance` of it, the
    one nearest to `preferred` is taken (at density 10 light travels a tenth of a scene unit, so that fog is left out
    and thin parts stay). Views alternate between elevations of 25 and -15 degrees. Raises RunFailed if the volume shows
    nothing.
    """
    cameras = Cameras.cat(
        [
            orbit((views + 1) // 2, elevation=25.0, height=size, width=size),
            orbit(views // 2, elevation=-15.0, azimuth=180.0 / max(views, 1), height=size, width=size),
        ]
    )
    opacity = _opacity(silhouettes(cameras), cameras)  # [V, H * W]
    if float(opacity.max()) < 0.05:
        raise RunFailed("the volume is transparent in every view; fit it longer before meshing")
    peak = largest_along_rays(values, cameras)  # [V, H * W]
    positive = peak[peak > 0]
    if not len(positive):
        raise RunFailed("the density is zero along every ray; there is no surface to extract")
    levels = np.unique(np.quantile(positive, np.linspace(0, 1, 257)[:-1]))
    scores = np.zeros(len(levels))
    for largest, o in zip(peak, opacity, strict=True):
        order = np.argsort(largest, kind="stable")
        below = np.concatenate([[0.0], np.cumsum(o[order])])  # opacity of the rays that a level excludes
        excluded = np.searchsorted(largest[order], levels, side="right")
        covered = len(o) - excluded
        scores += (below[-1] - below[excluded]) / np.maximum(covered + below[excluded], 1e-9)
    scores /= len(peak)
    best = int(scores.argmax())
    low, high = best, best
    while low > 0 and scores[low - 1] >= scores[best] - tolerance:
        low -= 1
    while high + 1 < len(levels) and scores[high + 1] >= scores[best] - tolerance:
        high += 1
    chosen = float(np.clip(preferred, levels[low], levels[high]))
    nearest = int(np.clip(np.searchsorted(levels, chosen, side="right") - 1, low, high))
    return Level(chosen, float(scores[nearest]))


def fill_hollows(heights: Float[np.ndarray, "n n n"], *, level_by_level: bool = False) -> Float[np.ndarray, "n n n"]:
    """`heights` with outside nodes (<= 0) that have no path along grid edges to the border turned into inside ones.

    `level_by_level` allows no path up or down: pits that are open to the sky alone are filled too.
    """
    from scipy import ndimage

    outside = np.pad(heights <= 0, 1, constant_values=True)
    near = ndimage.generate_binary_structure(3, 1)  # neighbours along edges, as marching cubes connects them
    if level_by_level:
        near[1, 1, [0, 2]] = False
    labels, _ = ndimage.label(outside, near)
    hollow = (outside & (labels != labels[:1, :1]))[1:-1, 1:-1, 1:-1]
    return np.where(hollow, np.float32(np.abs(heights).max()), heights)


def blurred(heights: Float[np.ndarray, "n n n"], deviation: float, saturation: float) -> Float[np.ndarray, "n n n"]:
    """`heights` under a Gaussian of `deviation` scene units, once they are clipped to +-`saturation`.

    A density of a thousand is no more inside than one of twice the level, so clipped it is an occupancy, whose zero
    stays where a flat wall is and rounds off whatever is thinner than the Gaussian: spikes, ridges, crumbs.
    """
    from scipy.ndimage import gaussian_filter

    cells = deviation * (len(heights) - 1) / 2
    if cells == 0:
        return np.clip(heights, -saturation, saturation)
    return gaussian_filter(np.clip(heights, -saturation, saturation), cells, mode="nearest")


def march(
    heights: Float[np.ndarray, "n n n"],
    *,
    refine: Callable[[np.ndarray], np.ndarray] | None = None,
    bisections: int = 4,
) -> Mesh:
    """Marching cubes at zero of `heights` (positive inside) on the grid over [-1, 1]^3, closed at the border, wound
    outwards.

    With `refine`, which answers the exact height at points, `bisections` steps of regula falsi (Illinois variant) move
    every vertex to the root between the two nodes of its grid edge.
    """
    from skimage.measure import marching_cubes

    resolution = len(heights) - 1
    # One layer of outside nodes closes the surface at the border; the vertices on it are then pulled back to the
    # border.
    padded = np.pad(heights, 1, constant_values=-np.float32(np.abs(heights).max()))
    with np.errstate(invalid="ignore"):
        vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent", allow_degenerate=False)
    index = vertices.astype(np.float64) - 1
    if refine is not None:
        index = _onto_edges(index, heights, refine, bisections)
    points = np.clip(index * (2.0 / resolution) - 1, -1, 1)
    return Mesh(points.astype(np.float32), faces.astype(np.int64))


def _onto_edges(
    index: Float[np.ndarray, "v 3"],
    heights: Float[np.ndarray, "n n n"],
    refine: Callable[[np.ndarray], np.ndarray],
    bisections: int,
) -> Float[np.ndarray, "v 3"]:
    resolution = len(heights) - 1
    low = np.floor(index + 1e-6).astype(np.int64)
    on_edge = (np.abs(index - np.round(index)) > 1e-6).sum(1) == 1
    axis = np.abs(index - np.round(index)).argmax(1)
    step = np.eye(3, dtype=np.int64)[axis]
    on_edge &= (low >= 0).all(1) & (low + step <= resolution).all(1)
    chosen = np.flatnonzero(on_edge)
    start, step = low[chosen], step[chosen]
    node_a, node_b = tuple(start.T), tuple((start + step).T)
    f_a, f_b = heights[node_a].astype(np.float64), heights[node_b].astype(np.float64)
    t_a, t_b = np.zeros(len(chosen)), np.ones(len(chosen))
    t = index[chosen, axis[chosen]] - start[np.arange(len(chosen)), axis[chosen]]
    moved_a = np.zeros(len(chosen), np.int64)  # 1 where the last step moved end a, -1 where it moved b
    for _ in range(bisections):
        points = ((start + step * t[:, None]) * (2.0 / resolution) - 1).astype(np.float32)
        f = refine(points).astype(np.float64)
        move_a = (f > 0) == (f_a > 0)
        # Illinois: an end that stays twice has its value halved, or it could stay for ever.
        f_a = np.where(move_a, f, np.where(moved_a == -1, f_a / 2, f_a))
        f_b = np.where(move_a, np.where(moved_a == 1, f_b / 2, f_b), f)
        t_a, t_b = np.where(move_a, t, t_a), np.where(move_a, t_b, t)
        moved_a = np.where(move_a, 1, -1)
        slope = f_a - f_b
        t = np.where(slope == 0, (t_a + t_b) / 2, t_a + (t_b - t_a) * f_a / np.where(slope == 0, 1, slope))
        t = np.clip(t, t_a, t_b)
    refined = index.copy()
    refined[chosen] = start + step * t[:, None]
    return refined


def _opacity(answer: Tensor, cameras: Cameras) -> Float[np.ndarray, "v p"]:
    masks = torch.as_tensor(answer).detach().cpu().float()
    views, height, width = len(cameras), cameras.height, cameras.width
    if tuple(masks.shape) not in ((views, height, width), (views, 1, height, width), (views, height, width, 1)):
        raise ValueError(
            f"silhouettes expects opacity [{views}, {height}, {width}], with a channel of one or without, "
            f"got {list(masks.shape)}"
        )
    return masks.reshape(views, height * width).clamp(0, 1).numpy().astype(np.float64)


def _scalar(field: FieldFunction, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    answer = field(points)
    if answer.numel() != len(points):
        raise ValueError(f"a field answers one number per point, got {list(answer.shape)} for {len(points)} points")
    return answer.detach().reshape(-1).float().cpu()
