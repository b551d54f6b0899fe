"""Packed renders whose geometry can be read off the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch


def pack_bars(folder: Path) -> Path:
    """Packed renders of six objects: a bar of its own colour whose place in the picture says the azimuth it is seen
    from.
    """
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 255, size=(6, 3))

    def picture(colour: np.ndarray, azimuth: float) -> np.ndarray:
        rgba = np.zeros((64, 64, 4), np.uint8)
        rgba[..., :3] = colour
        column = int(round(32 + 20 * np.sin(np.radians(azimuth))))
        rgba[16:48, column - 4 : column + 4, 3] = 255
        return rgba

    def poses(azimuths: np.ndarray, elevation: float) -> np.ndarray:
        rows = np.zeros((6, 8, 8), np.float32)
        rows[..., 0], rows[..., 1], rows[..., 2], rows[..., 3] = azimuths, elevation, 2.2, 40.0
        return rows

    steps = 45.0 * np.arange(8)
    front = np.array([-80.0, -40.0, 0.0, 40.0, 80.0, 150.0, 200.0, 250.0])
    for name, azimuths in (("canonical", steps), ("prompt", front), ("free", front + 10), ("ring", steps + 20)):
        array = np.stack([[picture(colour, azimuth) for azimuth in azimuths] for colour in colours])
        np.save(folder / f"{name}.npy", array)
        if name != "canonical":
            np.save(folder / f"{name}_poses.npy", poses(azimuths, 10.0))
    lines = [
        {"id": f"o{i}", "caption": "a red box", "family": f"f{i}", "has_canonical_front": True, "licence": "CC0-1.0"}
        for i in range(6)
    ]
    (folder / "meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def bar_centres(masks: torch.Tensor) -> torch.Tensor:
    """Columns [*] of the bars in masks [*, 64, 64]."""
    return (masks * (torch.arange(64) + 0.5)).sum((-1, -2)) / masks.sum((-1, -2))
