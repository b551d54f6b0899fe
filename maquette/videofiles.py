"""Video files: the few frames of one that say most about what it shows.

A person walks around a thing with a phone. Neighbouring frames are nearly equal and many are blurred, so frames are
judged twice: those that are sharp for their part of the video stay, and of these the ones that differ most are taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maquette.errors import UserError
from maquette.matting import Pixels

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
LOOKED_AT = 120
"""Frames that are judged, evenly spread over the video."""
SHARP_SHARE = 0.5
"""Share of the judged frames, the sharpest, that may be taken."""


def read_frames(path: Path, count: int, longest: int = 1024) -> list[tuple[int, Pixels]]:
    """`count` sharp frames that differ most, as (number in the video, float32 [H, W, 3] in [0, 1]), in order of time.

    The first is the sharpest; each further one is the farthest, by its colours on a coarse grid, from those taken.
    Frames are at most `longest` px a side. UserError where the file is no video or has fewer frames than wanted.
    """
    numbers, frames = _spread_frames(path, longest)
    if len(frames) < count:
        raise UserError(f"{path} has {len(frames)} readable frames, and {count} are wanted; use a longer video")
    sharpness = np.array([_sharpness(frame) for frame in frames])
    allowed = np.argsort(-sharpness, kind="stable")[: max(count, round(SHARP_SHARE * len(frames)))]
    coarse = np.stack([_coarse(frames[index]) for index in allowed])
    taken = [0]  # `allowed` begins with the sharpest
    distance = np.full(len(allowed), np.inf)
    while len(taken) < count:
        distance = np.minimum(distance, np.abs(coarse - coarse[taken[-1]]).mean(axis=1))
        distance[taken] = -1.0
        taken.append(int(np.argmax(distance)))
    chosen = sorted(int(allowed[index]) for index in taken)
    return [(numbers[index], frames[index].astype(np.float32) / 255) for index in chosen]


def _spread_frames(path: Path, longest: int) -> tuple[list[int], list[Pixels]]:
    """Numbers and RGB frames uint8 [H, W, 3], evenly spread over the video."""
    import cv2

    if not path.is_file():
        raise UserError(f"no video at {path}")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our sentence says it, once
    try:
        video = cv2.VideoCapture(str(path))
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        stride = max(1, total // LOOKED_AT)
        numbers: list[int] = []
        frames: list[Pixels] = []
        number = 0
        # Read in order: seeking is inexact in many files, and the count in the header is only a guess.
        while video.isOpened() and video.grab():
            if number % stride == 0:
                good, frame = video.retrieve()
                if good:
                    numbers.append(number)
                    frames.append(_shrunk(frame, longest)[..., ::-1])
            number += 1
        video.release()
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not frames:
        raise UserError(f"{path} is not a video that can be read; use MP4, MOV, AVI or WebM, or a folder of photos")
    return numbers, frames


def _shrunk(frame: Pixels, longest: int) -> Pixels:
    import cv2

    scale = longest / max(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _sharpness(frame: Pixels) -> float:
    """Variance of the Laplacian against that of the picture itself, so that contrast alone does not count."""
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(_shrunk(frame, 320)), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var() / (grey.var() + 1.0))


def _coarse(frame: Pixels) -> Pixels:
    """Colours on an 8 x 8 grid, in [0, 1]."""
    import cv2

    small = cv2.resize(np.ascontiguousarray(frame), (8, 8), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).reshape(-1) / 255
