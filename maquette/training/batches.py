"""Random batches for the multi-view prior: which object, which cameras, which prompt, which background.

Mirroring doubles the objects for nothing: a mirrored object seen from azimuth a is the mirror image of the original
seen from -a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from maquette.training.data import PackedObjects, composite, random_background, recolour, to_tensor, view_words


@dataclass(frozen=True)
class ThreeDBatch:
    """B scenes of V views and their prompts, all on one flat background per scene."""

    targets: Tensor  # [B, V, 3, s, s]
    masks: Tensor  # [B, V, 1, s, s]
    azimuth: Tensor  # [B, V], degrees from the object's front (or from the prompt, for relative cameras)
    elevation: Tensor  # [B, V]
    prompts: Tensor  # [B, 3, s, s]
    captions: list[str]

    def part(self, chosen: slice) -> ThreeDBatch:
        """Some of the scenes."""
        return ThreeDBatch(*(getattr(self, entry.name)[chosen] for entry in fields(self)))


@dataclass(frozen=True)
class SingleViewBatch:
    """B single views with captions that may name the view."""

    images: Tensor  # [B, 3, s, s]
    masks: Tensor  # [B, 1, s, s]
    captions: list[str]


def draw_3d(
    data: PackedObjects,
    rng: np.random.Generator,
    batch: int,
    views: int,
    size: int,
    *,
    recolour_share: float = 0.0,
    relative: bool = False,
    front_share: float = 0.5,
    front_prompts: float = 0.15,
    rows: Sequence[int] | None = None,
) -> ThreeDBatch:
    """`batch` scenes with evenly spaced target views.

    Half of the scenes have the canonical cameras (first view at azimuth 0); the others start anywhere on the ring, so
    that distillation can look from any azimuth. The prompt is a random front-facing render, in a share `front_prompts`
    of the scenes the exact front. With `relative` the ring starts at the prompt's own azimuth and is labelled from
    there. So it is always for objects that have no front: nobody could tell from a picture of a rock which of its sides
    a file calls the front. `rows` limits the objects to draw from.
    """
    targets, prompts, azimuths, elevations, captions = [], [], [], [], []
    for row in rng.choice(np.arange(len(data)) if rows is None else np.asarray(rows), size=batch).tolist():
        meta, mirrored = data.meta[row], bool(rng.random() < 0.5)
        prompt, prompt_azimuth = _draw_prompt(data, rng, row, front_prompts)
        from_prompt = relative or not meta["has_canonical_front"]
        images, azimuth, elevation = _draw_ring(
            data, rng, row, views, front_share, prompt_azimuth if from_prompt else None
        )
        if mirrored:  # image of the view at -a, mirrored, for the camera at a
            images, azimuth = images[:, :, ::-1], -azimuth
            prompt = prompt[:, ::-1]
        if from_prompt:
            azimuth = azimuth - (-prompt_azimuth if mirrored else prompt_azimuth)
        stack = torch.cat([to_tensor(images, size), to_tensor(prompt[None], size)])
        caption = meta["caption"]
        if rng.random() < recolour_share:
            stack, caption = recolour(stack, rng), ""
        background = torch.from_numpy(random_background(rng))[:, None, None]
        flat = composite(stack, background)
        targets.append(torch.cat([flat[:views], stack[:views, 3:]], dim=1))
        prompts.append(flat[views])
        azimuths.append(azimuth)
        elevations.append(np.full(views, elevation))
        captions.append(caption)
    both = torch.stack(targets)
    return ThreeDBatch(
        both[:, :, :3],
        both[:, :, 3:],
        torch.from_numpy(np.stack(azimuths)).float(),
        torch.from_numpy(np.stack(elevations)).float(),
        torch.stack(prompts),
        captions,
    )


def draw_single(
    data: PackedObjects, rng: np.random.Generator, batch: int, size: int, *, recolour_share: float = 0.0
) -> SingleViewBatch:
    """`batch` single views of any camera; half of the captions of views with a known side name it."""
    images, captions = [], []
    for row in rng.integers(len(data), size=batch).tolist():
        meta = data.meta[row]
        array, poses = (data.prompt, data.prompt_poses) if rng.random() < 0.4 else (data.free, data.free_poses)
        view = int(rng.integers(array.shape[1]))
        rgba = array[row, view]
        if rng.random() < 0.5:
            rgba = rgba[:, ::-1]
        caption = meta["caption"]
        if rng.random() < 0.6:
            caption += view_words(float(poses[row, view, 0]), float(poses[row, view, 1]), meta["has_canonical_front"])
        image = to_tensor(rgba, size)
        if rng.random() < recolour_share:
            image, caption = recolour(image, rng), ""
        background = torch.from_numpy(random_background(rng))[:, None, None]
        images.append(torch.cat([composite(image, background), image[3:]]))
        captions.append(caption)
    both = torch.stack(images)
    return SingleViewBatch(both[:, :3], both[:, 3:], captions)


def _draw_prompt(
    data: PackedObjects, rng: np.random.Generator, row: int, front_share: float
) -> tuple[np.ndarray, float]:
    """A prompt render [S, S, 4] and its azimuth: the exact front at times, else a random front-facing camera."""
    if rng.random() < front_share:
        return data.canonical[row, 0], 0.0
    facing = np.flatnonzero(np.abs(data.prompt_poses[row, :, 0]) <= 90.0)
    view = int(rng.choice(facing))
    return data.prompt[row, view], float(data.prompt_poses[row, view, 0])


def _draw_ring(
    data: PackedObjects, rng: np.random.Generator, row: int, views: int, front_share: float, start: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """(images [V, S, S, 4], azimuths [V], elevation) of evenly spaced views; a `start` takes the place of the front."""
    steps = data.canonical.shape[1]
    stride = steps // views
    if data.ring is None or data.ring_poses is None or rng.random() < front_share:
        first = 0 if start is None else round(start / (360.0 / steps))
        if data.ring is None and rng.random() >= front_share:
            first += int(rng.integers(stride))
        index = (first + stride * np.arange(views)) % steps
        return data.canonical[row, index], index * (360.0 / steps), data.elevation
    index = int(rng.integers(stride)) + stride * np.arange(views)
    poses = data.ring_poses[row, index]
    return data.ring[row, index], poses[:, 0].astype(np.float64), float(poses[0, 1])
