"""Put a mesh in order: weld, drop floaters, close holes, smooth, simplify, wind outwards. Each function returns a new
mesh.

These work on geometry: uv, textures, normals and vertex colours are dropped, so they come before unwrapping and baking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from maquette.asset import Mesh
from maquette.meshing.raycast import RayCaster, pixel_rays, surround


@dataclass(frozen=True)
class Floaters:
    """What `drop_floaters` took away."""

    count: int
    area_share: float
    """Their part of the surface area before, in [0, 1]."""
    volume_share: float
    """Their part of the enclosed volume before (absolute volumes per component), in [0, 1]."""


def weld(mesh: Mesh, tolerance: float = 0.0) -> Mesh:
    """Vertices at equal positions (within `tolerance`, snapped to a grid of that size) become one; collapsed and
    doubled faces go.
    """
    if tolerance > 0:
        _, first, index = np.unique(np.round(mesh.vertices / tolerance), axis=0, return_index=True, return_inverse=True)
        vertices = mesh.vertices[first]
    else:
        vertices, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces].astype(np.int64)
    collapsed = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    faces = faces[~collapsed]
    _, kept = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return _used(vertices, faces[np.sort(kept)])


def component_of_faces(faces: Int64[np.ndarray, "f 3"], count: int) -> Int64[np.ndarray, " f"]:
    """A component number per face; faces that share a vertex (of `count`) belong together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, component = np.unique(labels[faces[:, 0]], return_inverse=True)
    return component.reshape(-1).astype(np.int64)


def drop_floaters(mesh: Mesh, min_share: float = 0.01) -> tuple[Mesh, Floaters]:
    """Without components of less than `min_share` of the largest one's surface area, and what was taken away."""
    component = component_of_faces(mesh.faces, len(mesh.vertices))
    if not len(component):
        return mesh, Floaters(0, 0.0, 0.0)
    area = np.bincount(component, mesh.face_areas())
    volume = np.abs(np.bincount(component, _signed_volumes(mesh)))
    keep = area >= min_share * area.max()
    report = Floaters(
        count=int((~keep).sum()),
        area_share=float(area[~keep].sum() / max(area.sum(), 1e-30)),
        volume_share=float(volume[~keep].sum() / max(volume.sum(), 1e-30)),
    )
    return _used(mesh.vertices, mesh.faces[keep[component]]), report


def fill_holes(mesh: Mesh, max_edges: int = 64) -> Mesh:
    """Close border loops of at most `max_edges` edges with a fan around their centre; expects a welded, consistently
    wound mesh.

    Loops that touch themselves in a vertex are left open.
    """
    faces = mesh.faces
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = len(mesh.vertices)
    lonely = ~np.isin(edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0])
    border = edges[lonely]
    starts, uses = np.unique(border[:, 0], return_counts=True)
    following = dict(zip(border[:, 1].tolist(), border[:, 0].tolist(), strict=True))  # against the faces' own direction
    simple = set(starts[uses == 1].tolist()) & set(following)
    vertices, added = [mesh.vertices], []
    while simple:
        loop = [min(simple)]
        for _ in range(len(simple)):
            ahead = following.get(loop[-1], loop[0])
            if ahead == loop[0] or ahead not in simple:
                break
            loop.append(ahead)
        simple.difference_update(loop)
        if following.get(loop[-1]) != loop[0] or not 3 <= len(loop) <= max_edges:
            continue
        if len(loop) == 3:
            added.append(loop)
            continue
        centre = count + len(vertices) - 1
        vertices.append(mesh.vertices[loop].mean(0, keepdims=True))
        added += [[a, b, centre] for a, b in zip(loop, loop[1:] + loop[:1], strict=True)]
    if not added:
        return mesh
    return Mesh(np.concatenate(vertices), np.concatenate([faces, np.array(added, np.int64)]))


def smooth(mesh: Mesh, iterations: int, shrink: float = 0.5, inflate: float = -0.53) -> Mesh:
    """Taubin's smoothing: alternating steps of the umbrella operator by `shrink` and `inflate`, which keep the volume.

    Pass-band frequency 1/shrink + 1/inflate ~ 0.11 (Taubin, "A signal processing approach to fair surface design",
    1995).
    """
    from scipy.sparse import coo_matrix

    faces, count = mesh.faces, len(mesh.vertices)
    a = np.concatenate([faces[:, 0], faces[:, 1], faces[:, 2]])
    b = np.concatenate([faces[:, 1], faces[:, 2], faces[:, 0]])
    link = coo_matrix(
        (np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(count, count)
    ).tocsr()
    link.data[:] = 1.0
    degree = np.maximum(np.asarray(link.sum(1)), 1.0)
    vertices = mesh.vertices.astype(np.float64)
    for _ in range(iterations):
        for factor in (shrink, inflate):
            vertices = vertices + factor * (link @ vertices / degree - vertices)
    return Mesh(vertices, faces)


def simplify(mesh: Mesh, max_faces: int) -> Mesh:
    """At most `max_faces` faces, by quadric edge collapse; unchanged if it has no more. Expects a welded mesh."""
    if max_faces < 4:
        raise ValueError(f"a closed surface needs at least 4 faces, got max_faces={max_faces}")
    if len(mesh.faces) <= max_faces:
        return mesh
    import fast_simplification

    points, triangles = np.ascontiguousarray(mesh.vertices), np.ascontiguousarray(mesh.faces.astype(np.int32))
    target = max_faces
    while True:
        vertices, faces = fast_simplification.simplify(points, triangles, target_count=target)
        result = mend(_used(vertices, faces.astype(np.int64)))
        if len(result.faces) <= max_faces or target <= 4:
            return result
        target = max(4, target - (len(result.faces) - max_faces) - target // 50)  # room for the faces that mend holes


def mend(mesh: Mesh, rounds: int = 4) -> Mesh:
    """A nearly closed surface made closed again; expects a welded mesh and leaves a closed manifold one as it is.

    Collapsing edges can fold two faces onto each other or pinch sheets together along an edge. Faces over each other
    with opposite winding cancel, faces around an edge of more than two are cut out, sheets that touch in a mere vertex
    are parted, and the small holes are closed; what stays open after `rounds` shows in `MeshQuality`.
    """
    for _ in range(rounds):
        if _is_closed_manifold(mesh.faces):
            break
        faces = _without_doubles(mesh.faces)
        edges, owner = _edges(faces)
        _, index, uses = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True, return_counts=True)
        pinched = np.unique(owner[uses[index.reshape(-1)] > 2])
        mesh = fill_holes(_part_sheets(_used(mesh.vertices, np.delete(faces, pinched, axis=0))), max_edges=48)
    return mesh


def _is_closed_manifold(faces: Int64[np.ndarray, "f 3"]) -> bool:
    """Whether every edge has exactly two faces, wound alike."""
    edges, _ = _edges(faces)
    if not len(edges):
        return False
    _, directed = np.unique(edges, axis=0, return_counts=True)
    _, uses = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    return bool((directed == 1).all() and (uses == 2).all())


def _without_doubles(faces: Int64[np.ndarray, "f 3"]) -> Int64[np.ndarray, "g 3"]:
    """Faces without collapsed ones; of several on the same corners those that opposite winding does not cancel."""
    collapsed = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    faces = faces[~collapsed]
    order = np.argsort(faces, axis=1)
    turns = np.where((order[:, 1] - order[:, 0]) % 3 == 1, 1, -1)  # whether sorting kept the cyclic order
    _, first, index = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True)
    balance = np.bincount(index.reshape(-1), turns)
    chosen = first[balance != 0]
    kept = faces[chosen]
    wrong = turns[chosen] * balance[balance != 0] < 0
    kept[wrong] = kept[wrong][:, ::-1]
    return kept


def _part_sheets(mesh: Mesh) -> Mesh:
    """Every vertex once for each fan of faces around it, so that fans which share nothing but the vertex come apart."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces, count = mesh.faces, len(mesh.faces)
    edges, owner = _edges(faces)
    start = np.repeat(np.arange(3), count)  # which corner of its face an edge starts from
    corner_a, corner_b = owner * 3 + start, owner * 3 + (start + 1) % 3
    key = edges[:, 0] * len(mesh.vertices) + edges[:, 1]
    back = edges[:, 1] * len(mesh.vertices) + edges[:, 0]
    order = np.argsort(key)
    at = np.clip(np.searchsorted(key[order], back), 0, len(key) - 1)
    met = key[order][at] == back
    other = order[at]
    one = np.concatenate([corner_a[met], corner_b[met]])
    two = np.concatenate([corner_b[other[met]], corner_a[other[met]]])
    graph = coo_matrix((np.ones(len(one), np.int8), (one, two)), shape=(3 * count, 3 * count))
    _, label = connected_components(graph, directed=False)
    _, first, index = np.unique(label, return_index=True, return_inverse=True)
    return Mesh(mesh.vertices[faces.reshape(-1)[first]], index.reshape(-1, 3))


def _edges(faces: Int64[np.ndarray, "f 3"]) -> tuple[Int64[np.ndarray, "e 2"], Int64[np.ndarray, " e"]]:
    """Directed edges of all faces, and the face of each."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return edges, np.tile(np.arange(len(faces)), 3)


def wind_outwards(mesh: Mesh) -> Mesh:
    """Faces of each component wound alike, and so that from outside one sees their front. Expects a welded mesh.

    Winding spreads over edges with exactly two faces. Which side of a piece is its outside is voted by rays from
    cameras all around; pieces that no ray meets keep their winding.
    """
    faces = mesh.faces.copy()
    flip, piece = _consistent_flips(faces)
    faces[flip] = faces[flip][:, ::-1]
    turned = Mesh(mesh.vertices, faces)
    caster, normals = RayCaster(turned), turned.face_normals()
    votes = np.zeros(int(piece.max()) + 1)
    for camera in surround(turned, size=96):
        origins, directions = pixel_rays(camera)
        face = caster.first_hits(origins, directions).face
        hit = face >= 0
        facing = -(normals[face[hit]] * directions[hit]).sum(-1)
        votes += np.bincount(piece[face[hit]], facing, minlength=len(votes))
    inward = votes[piece] < 0
    faces[inward] = faces[inward][:, ::-1]
    return Mesh(mesh.vertices, faces)


def _consistent_flips(faces: Int64[np.ndarray, "f 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Which faces to flip so that neighbours agree, and the piece (connected over such edges) of each face."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    count = len(faces)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    owner = np.tile(np.arange(count), 3)
    low_high = np.sort(edges, axis=1)
    forward = edges[:, 0] < edges[:, 1]
    order = np.lexsort((low_high[:, 1], low_high[:, 0]))
    _, start, uses = np.unique(low_high[order], axis=0, return_index=True, return_counts=True)
    first, second = order[start[uses == 2]], order[start[uses == 2] + 1]
    a, b = owner[first], owner[second]
    differs = forward[first] == forward[second]  # neighbours that agree run along their edge in opposite directions
    weight = np.where(differs, 2, 1)
    graph = coo_matrix(
        (np.concatenate([weight, weight]), (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(count, count)
    ).tocsr()
    pieces, piece = connected_components(graph, directed=False)
    flip = np.zeros(count, bool)
    relation = dict(zip(zip(a.tolist(), b.tolist(), strict=True), differs.tolist(), strict=True))
    _, seeds = np.unique(piece, return_index=True)
    for seed in seeds.tolist():
        visited, parent = breadth_first_order(graph, seed, directed=False)
        for face in visited[1:].tolist():
            above = int(parent[face])
            turned = relation[(face, above)] if (face, above) in relation else relation[(above, face)]
            flip[face] = flip[above] ^ turned
    return flip, piece.astype(np.int64)


def _signed_volumes(mesh: Mesh) -> Float[np.ndarray, " f"]:
    """Signed volume between each face and the origin; its sum over a closed outward surface is the enclosed volume."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)) / 6


def _used(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    used = np.zeros(len(vertices), bool)
    used[faces.reshape(-1)] = True
    return Mesh(vertices[used], (np.cumsum(used) - 1)[faces])
