"""Random pairs for a novel-view prior: a picture of an object, another view of it, and the pose between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maquette.priors.zero123_pose import relative_pose
from maquette.training.data import PackedObjects, composite, recolour, to_tensor


@dataclass(frozen=True)
class PairBatch:
    """B pairs on white, the only background that Zero-1-to-3 knows."""

    targets: Float[Tensor, "b 3 s s"]
    masks: Float[Tensor, "b 1 s s"]
    pictures: Float[Tensor, "b 3 s s"]
    pose: Float[Tensor, "b 4"]
    """Pose of the target relative to the picture (`maquette.priors.zero123_pose`); its distance is always 0, since
    pictures are cropped to one size whatever they were taken from."""


def draw_pairs(
    data: PackedObjects,
    rng: np.random.Generator,
    batch: int,
    size: int,
    *,
    recolour_share: float = 0.0,
    same: float = 0.0,
    turned: float = 0.0,
) -> PairBatch:
    """`batch` pairs: any render as the picture, any of the renders of one fixed lens as the view.

    Half of the pictures are taken of those that people bring (other lenses, lights, crops). A share `same` of the pairs
    asks for the picture itself, and a share `turned` goes round the canonical circle from its first view. Mirroring
    doubles the objects: the mirror image of a view from azimuth a is a view of the mirrored object from -a.
    """
    targets, pictures, poses = [], [], []
    for row in rng.integers(len(data), size=batch).tolist():
        mirrored = bool(rng.random() < 0.5)
        kind = rng.random()
        if kind < turned:
            picture, picture_pose = data.canonical[row, 0], np.array([data.elevation, 0.0])
            target, target_pose = _draw(data, rng, row, "canonical")
        else:
            picture, picture_pose = _draw(data, rng, row, "prompt" if rng.random() < 0.5 else _any_set(data, rng))
            target, target_pose = _draw(data, rng, row, _any_set(data, rng))
        if kind >= 1.0 - same:
            target, target_pose = picture, picture_pose
        if mirrored:
            picture, target = picture[:, ::-1], target[:, ::-1]
            picture_pose, target_pose = picture_pose * (1, -1), target_pose * (1, -1)
        pair = torch.cat([to_tensor(picture[None], size), to_tensor(target[None], size)])
        if rng.random() < recolour_share:
            pair = recolour(pair, rng)
        flat = composite(pair, torch.ones(3, 1, 1))
        pictures.append(flat[0])
        targets.append(torch.cat([flat[1], pair[1, 3:]]))
        seen, view = torch.from_numpy(picture_pose).float(), torch.from_numpy(target_pose).float()
        poses.append(relative_pose(torch.cat([view, torch.zeros(1)]), seen))
    both = torch.stack(targets)
    return PairBatch(both[:, :3], both[:, 3:], torch.stack(pictures), torch.stack(poses))


def _any_set(data: PackedObjects, rng: np.random.Generator) -> str:
    """One of the sets whose renders have the canonical lens and size."""
    names = ("canonical", "free", "free") if data.ring is None else ("canonical", "ring", "free", "free")
    return str(rng.choice(names))


def _draw(data: PackedObjects, rng: np.random.Generator, row: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A render [S, S, 4] of a set, and its (elevation, azimuth) in degrees."""
    array = getattr(data, name)
    view = int(rng.integers(array.shape[1]))
    if name == "canonical":
        azimuth, elevation = view * 360.0 / array.shape[1], data.elevation
    else:
        azimuth, elevation = getattr(data, f"{name}_poses")[row, view, :2].tolist()
    return array[row, view], np.array([elevation, azimuth])
