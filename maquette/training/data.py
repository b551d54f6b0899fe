"""Packed renders as training batches.

A packed folder (written by `maquette render --pack`) holds, for N objects in the row order of `meta.jsonl`:

* `canonical.npy` uint8 [N, A, S, S, 4]: unlit views at azimuths 0, 360/A, ... and one elevation, straight alpha;
* `prompt.npy`, `free.npy` uint8 [N, P, S, S, 4] with `*_poses.npy` float32 [N, P, 8]
  (azimuth, elevation, distance, fovy in degrees and units, lit, light direction xyz);
* optionally `ring.npy` [N, A, S, S, 4] with `ring_poses.npy` float32 [N, A, 8]: evenly spaced views at a random
  elevation and azimuth offset of each object.

Everything is decided by a NumPy generator that the trainer seeds per step, so that a resumed run sees the same batches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRONT_WORD_LIMIT = 45.0  # degrees of azimuth around 0 that count as "front view"; as much around 180 is "back view"


@dataclass(frozen=True)
class PackedObjects:
    """Memory-mapped renders of N objects and what is known of them."""

    folder: Path
    meta: list[dict[str, Any]]
    canonical: np.ndarray
    prompt: np.ndarray
    prompt_poses: np.ndarray
    free: np.ndarray
    free_poses: np.ndarray
    ring: np.ndarray | None
    ring_poses: np.ndarray | None
    elevation: float = 5.0

    @classmethod
    def open(cls, folder: Path) -> PackedObjects:
        """Raises FileNotFoundError naming the missing file."""
        folder = Path(folder)
        meta = [json.loads(line) for line in (folder / "meta.jsonl").read_text(encoding="utf-8").splitlines()]

        def array(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        has_ring = (folder / "ring.npy").exists()
        return cls(
            folder,
            meta,
            array("canonical"),
            array("prompt"),
            array("prompt_poses"),
            array("free"),
            array("free_poses"),
            array("ring") if has_ring else None,
            array("ring_poses") if has_ring else None,
        )

    def __len__(self) -> int:
        return len(self.meta)

    @property
    def size(self) -> int:
        return int(self.canonical.shape[2])


def view_words(azimuth: float, elevation: float, has_front: bool) -> str:
    """ ", front view" and its kin for a camera; objects without a front only know the overhead view."""
    if elevation > 60:
        return ", overhead view"
    if not has_front:
        return ""
    turned = abs((azimuth + 180) % 360 - 180)
    if turned < FRONT_WORD_LIMIT:
        return ", front view"
    return ", back view" if turned > 180 - FRONT_WORD_LIMIT else ", side view"


def to_tensor(rgba: np.ndarray, size: int | None = None) -> Tensor:
    """uint8 [..., S, S, 4] straight alpha -> float [..., 4, s, s] in [0, 1], averaged down with premultiplied
    colour."""
    x = torch.from_numpy(np.array(rgba)).movedim(-1, -3).float() / 255
    if size is None or size == x.shape[-1]:
        return x
    factor = x.shape[-1] // size
    if factor * size != x.shape[-1]:
        raise ValueError(f"cannot average {x.shape[-1]} px renders down to {size} px: not a whole factor")
    alpha = x[..., 3:, :, :]
    flat = torch.cat([x[..., :3, :, :] * alpha, alpha], dim=-3).reshape(-1, *x.shape[-3:])
    flat = F.avg_pool2d(flat, factor)
    colour = flat[:, :3] / flat[:, 3:].clamp_min(1e-4)
    return torch.cat([colour, flat[:, 3:]], dim=1).reshape(*x.shape[:-3], 4, size, size)


def composite(rgba: Tensor, background: Tensor) -> Tensor:
    """Straight-alpha [..., 4, h, w] over a flat colour that broadcasts from [..., 3, 1, 1]."""
    alpha = rgba[..., 3:, :, :]
    return rgba[..., :3, :, :] * alpha + background * (1 - alpha)


def recolour(rgba: Tensor, rng: np.random.Generator) -> Tensor:
    """The same object in other colours: a random permutation of channels, contrast and brightness, alpha untouched."""
    colour = rgba[..., :3, :, :][..., torch.from_numpy(rng.permutation(3)), :, :]
    gain, gamma = float(rng.uniform(0.75, 1.2)), float(rng.uniform(0.75, 1.3))
    colour = (colour.clamp(0, 1) ** gamma * gain).clamp(0, 1)
    return torch.cat([colour, rgba[..., 3:, :, :]], dim=-3)


def random_background(rng: np.random.Generator, white: float = 0.4) -> np.ndarray:
    """A flat RGB colour in [0, 1]: white with probability `white`, else grey or any colour, equally often."""
    draw = rng.random()
    if draw < white:
        return np.ones(3, np.float32)
    if draw < white + (1 - white) / 2:
        return np.full(3, rng.random(), np.float32)
    return rng.random(3).astype(np.float32)
