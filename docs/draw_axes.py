"""Draws docs/images/axes.png, the figure of docs/conventions.md: `python docs/draw_axes.py`.

The world is projected by the cameras it explains, so that the figure cannot disagree with the code.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from maquette.cameras import Cameras, orbit

WIDTH, HEIGHT, SCALE = 1500, 860, 3
INK, FAINT, PAPER = (45, 48, 56), (176, 182, 192), (255, 255, 255)
RED, GREEN, BLUE, ORANGE, VIOLET = (206, 58, 48), (40, 148, 82), (44, 98, 210), (226, 130, 20), (128, 78, 190)

Point = tuple[float, float, float]


class Figure:
    """A canvas drawn at three times its size, with world points seen by a camera that is shifted on the page."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.camera = orbit(1, azimuth=24, elevation=26, distance=11.2, fovy=30, height=HEIGHT, width=WIDTH)[0]
        self.shift = (-300.0, 10.0)

    def at(self, point: Point) -> tuple[float, float]:
        """Page position of a world point."""
        pixels, _ = self.camera.project(torch.tensor([point], dtype=torch.float32))
        x, y = pixels[0].tolist()
        return x + self.shift[0], y + self.shift[1]

    def line(self, points: list[tuple[float, float]], colour: tuple, width: float = 2, dashed: bool = False) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        if not dashed:
            self.draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")
            return
        for (x0, y0), (x1, y1) in zip(scaled, scaled[1:], strict=False):
            pieces = max(1, round(math.dist((x0, y0), (x1, y1)) / (9 * SCALE)))
            for k in range(pieces):
                s, t = k / pieces, (k + 0.55) / pieces
                ends = [(x0 + (x1 - x0) * s, y0 + (y1 - y0) * s), (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)]
                self.draw.line(ends, fill=colour, width=round(width * SCALE))

    def curve(self, points: list[Point], colour: tuple, width: float = 2, dashed: bool = False) -> None:
        self.line([self.at(point) for point in points], colour, width, dashed)

    def arrow(self, points: list[tuple[float, float]], colour: tuple, width: float = 3, head: float = 15) -> None:
        """A line through page positions with a head at its end."""
        self.line(points, colour, width)
        (x0, y0), (x1, y1) = points[-2], points[-1]
        angle = math.atan2(y1 - y0, x1 - x0)
        corners = [(x1 + 0.35 * head * math.cos(angle), y1 + 0.35 * head * math.sin(angle))]
        for turn in (math.pi - 0.4, math.pi + 0.4):
            corners.append((x1 + head * math.cos(angle + turn), y1 + head * math.sin(angle + turn)))
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in corners], fill=colour)

    def fill(self, points: list[Point], colour: tuple, outline: tuple = INK) -> None:
        page = [self.at(point) for point in points]
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in page], fill=colour)
        self.line([*page, page[0]], outline, 2)

    def text(
        self, place: tuple[float, float], text: str, colour: tuple = INK, size: int = 21, anchor: str = "mm"
    ) -> None:
        font = ImageFont.load_default(size * SCALE)
        place = (place[0] * SCALE, place[1] * SCALE)
        self.draw.multiline_text(
            place,
            text,
            fill=colour,
            font=font,
            anchor=anchor,
            stroke_width=3 * SCALE,
            stroke_fill=PAPER,
            spacing=5 * SCALE,
        )

    def save(self, path: Path) -> None:
        self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).quantize(128).save(path, optimize=True)


def on_sphere(azimuth: float, elevation: float, radius: float) -> Point:
    a, e = math.radians(azimuth), math.radians(elevation)
    return (radius * math.cos(e) * math.cos(a), radius * math.cos(e) * math.sin(a), radius * math.sin(e))


def frustum(figure: Figure, camera: Cameras, colour: tuple, size: float = 0.42) -> None:
    """A pyramid from the camera's centre to its image, with a tick on the image's upper side."""
    half = size * math.tan(math.radians(float(camera.fovy)) / 2)
    corners = torch.tensor(
        [[-half, half, -size], [half, half, -size], [half, -half, -size], [-half, -half, -size], [0, 1.5 * half, -size]]
    )
    world = (corners @ camera.c2w[:3, :3].T + camera.position).tolist()
    apex = camera.position.tolist()
    for corner in world[:4]:
        figure.curve([apex, corner], colour, 1.6)
    figure.curve([*world[:4], world[0]], colour, 2.4)
    figure.curve([world[0], world[4], world[1]], colour, 2.4)


def draw_object(figure: Figure) -> None:
    """A box with a face on its front, +x."""
    x, y, z = 0.36, 0.42, 0.48
    figure.fill([(-x, y, -z), (x, y, -z), (x, y, z), (-x, y, z)], (250, 214, 150))
    figure.fill([(-x, -y, z), (x, -y, z), (x, y, z), (-x, y, z)], (255, 238, 205))
    figure.fill([(x, -y, -z), (x, y, -z), (x, y, z), (x, -y, z)], (255, 226, 176))
    for side in (-0.17, 0.17):
        eye = [
            (x, side + 0.055 * math.cos(t), 0.16 + 0.08 * math.sin(t)) for t in (k * math.tau / 16 for k in range(16))
        ]
        figure.fill(eye, INK)
    smile = [(x, 0.22 * math.cos(t), -0.06 - 0.18 * math.sin(t)) for t in (k * math.pi / 16 for k in range(17))]
    figure.curve(smile, INK, 4)


def draw_world(figure: Figure) -> None:
    radius = 2.75
    figure.text((430, 42), "the world", size=30)
    corners = [(a, b, c) for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)]
    for one in corners:
        for other in corners:
            if one < other and sum(p != q for p, q in zip(one, other, strict=True)) == 1:
                figure.curve([one, other], FAINT, 1.4)
    figure.curve([on_sphere(a, 0, radius) for a in range(0, 361, 3)], FAINT, 1.6, dashed=True)
    figure.arrow([figure.at((0, 0, -1.25)), figure.at((0, 0, 1.75))], BLUE, 3)
    figure.arrow([figure.at((-1.25, 0, 0)), figure.at((1.8, 0, 0))], RED, 3)
    figure.arrow([figure.at((0, -1.25, 0)), figure.at((0, 1.8, 0))], GREEN, 3)
    draw_object(figure)
    figure.arrow([figure.at((0.36, 0, 0)), figure.at((1.8, 0, 0))], RED, 3)
    figure.arrow([figure.at((0, 0.42, 0)), figure.at((0, 1.8, 0))], GREEN, 3)
    figure.arrow([figure.at((0, 0, 0.48)), figure.at((0, 0, 1.75))], BLUE, 3)
    x, y = figure.at((1.8, 0, 0))
    figure.text((x + 46, y + 22), "+x  front", RED)
    x, y = figure.at((0, 1.8, 0))
    figure.text((x + 16, y - 26), "+y", GREEN)
    x, y = figure.at((0, 0, 1.75))
    figure.text((x + 46, y), "+z  up", BLUE)

    arc = [figure.at(on_sphere(a, 0, 1.5)) for a in range(3, 82, 3)]
    figure.arrow(arc, ORANGE, 3)
    x, y = figure.at(on_sphere(44, 0, 1.5))
    figure.text((x + 60, y + 24), "azimuth grows", ORANGE)
    rise = [figure.at(on_sphere(0, e, radius)) for e in range(2, 33, 2)]
    figure.arrow(rise, VIOLET, 3)
    figure.curve([on_sphere(0, 38, 0.0), on_sphere(0, 38, radius)], VIOLET, 1.6, dashed=True)
    frustum(figure, orbit(1, elevation=38, distance=radius)[0], VIOLET)
    x, y = figure.at(on_sphere(0, 30, radius))
    figure.text((x - 66, y + 58), "elevation\ngrows", VIOLET)

    places = {0: (-8, 44), 90: (26, 30), 180: (34, -34), 270: (-30, -30)}
    names = {0: "azimuth 0\nfront", 90: "90", 180: "180\nback", 270: "270"}
    for azimuth, (dx, dy) in places.items():
        camera = orbit(1, azimuth=azimuth, distance=radius)[0]
        frustum(figure, camera, INK)
        x, y = figure.at(tuple(camera.position.tolist()))
        figure.text((x + dx, y + dy), names[azimuth])
    x, y = figure.at((1, 1, -1))
    figure.text((x + 10, y + 26), "the volume, [-1, 1] on each axis", (120, 126, 138), 19)


def draw_camera(figure: Figure) -> None:
    """The camera's own axes, in an oblique view."""
    figure.text((1150, 42), "a camera", size=30)
    origin = (1060.0, 250.0)

    def at(x: float, y: float, z: float) -> tuple[float, float]:
        return (origin[0] + 115 * x - 88 * z, origin[1] - 115 * y - 52 * -z * -1)

    image = [at(-0.75, 0.56, -1.9), at(0.75, 0.56, -1.9), at(0.75, -0.56, -1.9), at(-0.75, -0.56, -1.9)]
    for corner in image:
        figure.line([origin, corner], FAINT, 1.8)
    figure.line([*image, image[0]], INK, 2.4)
    figure.line([origin, at(0, 0, -1.9)], FAINT, 2, dashed=True)
    figure.arrow([at(0, 0, -1.9), at(0, 0, -2.75)], (120, 126, 138), 2.5)
    figure.text((at(0, 0, -2.75)[0] + 70, at(0, 0, -2.75)[1] - 4), "looks\nalong -z", (100, 106, 118), 20)
    figure.arrow([origin, at(1.15, 0, 0)], RED, 3)
    figure.arrow([origin, at(0, 1.15, 0)], GREEN, 3)
    figure.arrow([origin, at(0, 0, 1.05)], BLUE, 3)
    figure.text((at(1.15, 0, 0)[0] - 6, at(1.15, 0, 0)[1] + 22), "x right", RED)
    figure.text((at(0, 1.15, 0)[0] - 46, at(0, 1.15, 0)[1] + 4), "y up", GREEN)
    figure.text((at(0, 0, 1.05)[0] - 20, at(0, 0, 1.05)[1] + 26), "z back", BLUE)


def draw_pixels(figure: Figure) -> None:
    figure.text((1150, 452), "its image", size=30)
    left, top, cell, columns, rows = 1000.0, 520.0, 62.0, 5, 4
    for k in range(columns + 1):
        figure.line([(left + k * cell, top), (left + k * cell, top + rows * cell)], FAINT, 1.6)
    for k in range(rows + 1):
        figure.line([(left, top + k * cell), (left + columns * cell, top + k * cell)], FAINT, 1.6)
    figure.arrow([(left, top), (left + columns * cell + 42, top)], RED, 3)
    figure.arrow([(left, top), (left, top + rows * cell + 42)], GREEN, 3)
    figure.text((left + columns * cell + 66, top), "x", RED)
    figure.text((left, top + rows * cell + 64), "y", GREEN)
    figure.text((left - 26, top - 20), "(0, 0)", size=18)
    figure.text((left + columns * cell + 64, top + rows * cell + 4), "(width,\nheight)", size=18)
    for x, y, name in ((0.5, 0.5, "(0.5, 0.5)"), (columns / 2, rows / 2, "principal point")):
        px, py = left + x * cell, top + y * cell
        figure.draw.ellipse([(px - 5) * SCALE, (py - 5) * SCALE, (px + 5) * SCALE, (py + 5) * SCALE], fill=INK)
        figure.text((px + 12, py + 20), name, size=18, anchor="lm")


def main() -> None:
    figure = Figure()
    draw_world(figure)
    figure.line([(905, 60), (905, HEIGHT - 60)], (225, 228, 234), 2)
    draw_camera(figure)
    draw_pixels(figure)
    figure.save(Path(__file__).parent / "images" / "axes.png")


if __name__ == "__main__":
    main()
