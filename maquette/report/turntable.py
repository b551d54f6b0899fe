"""The object turning: an animated WebP with a transparent background and, with the video extra, an MP4."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import orbit
from maquette.errors import RunFailed
from maquette.rendering.lighting import Light, Lighting
from maquette.rendering.raster import MeshRenderer
from maquette.run.files import atomic_path

Frames = UInt8[np.ndarray, "f h w 4"]
PAPER = (236, 233, 227)
"""Behind the object where a format has no transparency."""


@dataclass(frozen=True)
class Turntable:
    """How the object is shown turning."""

    frames: int = 36
    """Pictures of one turn."""
    size: int = 256
    """Pixels a side."""
    elevation: float = 15.0
    """Degrees above the horizon from which it is seen."""
    seconds: float = 4.5
    """Of one turn."""
    samples: int = 2
    """Rays along each side of a pixel."""

    def __post_init__(self) -> None:
        if self.frames < 2 or self.size < 16 or self.samples < 1 or self.seconds <= 0:
            raise ValueError(f"a turntable has 2 frames, 16 px, 1 sample and some seconds at least, got {self}")


def write_turntable(folder: Path | str, mesh: Mesh, config: Turntable = Turntable()) -> list[Path]:
    """Write turntable.webp into `folder`, and turntable.mp4 where imageio-ffmpeg is installed; the files written.

    The object turns to the right on its own axis, from its front on, in the light of a fixed studio. Raises RunFailed
    where the encoder of the video fails, or the disk is full.
    """
    frames = render_turn(mesh, config)
    folder = Path(folder)
    written = [folder / "turntable.webp"]
    with atomic_path(written[0]) as temporary:
        save_webp(temporary, frames, config.seconds)
    encoder = find_encoder()
    if encoder is not None:
        written.append(folder / "turntable.mp4")
        with atomic_path(written[1]) as temporary:
            save_mp4(temporary, frames, config.seconds, encoder)
    return written


def render_turn(mesh: Mesh, config: Turntable = Turntable()) -> Frames:
    """One turn of the normalised mesh, from its front on, as straight RGBA."""
    # A camera that goes round to the left sees the object turn to the right; the lights go with the camera.
    cameras = orbit(config.frames, elevation=config.elevation, height=config.size, width=config.size, span=-360.0)
    lights = [studio(azimuth) for azimuth in cameras.azimuth.tolist()]
    seen = MeshRenderer(mesh.normalized()).render(cameras, lighting=lights, samples=config.samples)
    return to_bytes(seen.rgba)


def studio(azimuth: float) -> Lighting:
    """The light for a viewer at `azimuth` degrees: bright, so that colours look as they are, from the upper right."""
    return Lighting(0.62, (Light(azimuth + 38.0, 42.0, 0.5), Light(azimuth - 65.0, 15.0, 0.14)))


def to_bytes(pictures: Float[Tensor, "*n h w c"]) -> UInt8[np.ndarray, "*n h w c"]:
    """Values in [0, 1] as bytes."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def save_webp(path: Path, frames: UInt8[np.ndarray, "f h w c"], seconds: float, quality: int = 82) -> None:
    """Write frames (RGB or RGBA) as an endless animation of `seconds` a turn; equal frames give equal bytes."""
    from PIL import Image

    # Colours below a transparent pixel are not seen; without them the file is smaller.
    shown = np.where(frames[..., 3:] > 0, frames, 0).astype(np.uint8) if frames.shape[-1] == 4 else frames
    pictures = [Image.fromarray(frame) for frame in shown]
    pictures[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=_durations(len(pictures), seconds),
        loop=0,
        quality=quality,
        method=4,
    )


def save_mp4(path: Path, frames: Frames, seconds: float, encoder: str, turns: int = 2) -> None:
    """Write `turns` turns as H.264 on a plain background, for players that do not loop. RunFailed if that fails."""
    alpha = frames[..., 3:].astype(np.float32) / 255
    flat = frames[..., :3] * alpha + np.array(PAPER, np.float32) * (1 - alpha)
    height, width = (2 * (side // 2) for side in frames.shape[1:3])  # H.264 wants even sides
    data = np.tile(flat.round().astype(np.uint8)[:, :height, :width], (turns, 1, 1, 1)).tobytes()
    command = [
        encoder, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
        "-r", f"{len(frames) / seconds:g}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20",
        "-threads", "1", "-movflags", "+faststart", "-map_metadata", "-1", "-fflags", "+bitexact", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise RunFailed(f"ffmpeg could not write {path.name} ({reason[-1] if reason else done.returncode})")


def find_encoder() -> str | None:
    """The ffmpeg of the package imageio-ffmpeg, or None without the video extra."""
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        return None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _durations(count: int, seconds: float) -> Sequence[int]:
    """Whole milliseconds of each frame that add up to the turn."""
    edges = [round(1000 * seconds * index / count) for index in range(count + 1)]
    return [after - before for before, after in zip(edges, edges[1:], strict=False)]
