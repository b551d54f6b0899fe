"""Line drawings in SVG: curves of a run, and where the picture was taken from, seen from above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

POINTS = 240
"""Points of a drawn curve at most; longer ones are averaged over bins."""
SMOOTHING = 1 / 14
"""Share of a curve over which its running mean goes."""
LOGARITHMIC = 30.0
"""A positive curve whose 95th percentile is so many times its 5th is drawn with a logarithmic scale."""


@dataclass(frozen=True)
class Curve:
    """A curve that is ready to be drawn."""

    steps: Float[np.ndarray, " n"]
    """Steps, increasing."""
    values: Float[np.ndarray, " n"]
    """Means over bins of steps."""
    mean: Float[np.ndarray, " n"]
    """Running mean."""
    logarithmic: bool
    """Whether the vertical scale is."""

    @classmethod
    def of(cls, points: Sequence[tuple[int, float]]) -> Curve:
        """From (step, value) pairs, at least one."""
        steps, values = np.array(points, np.float64).T
        if len(steps) > POINTS:
            edges = np.linspace(0, len(steps), POINTS + 1).round().astype(int)
            counts = np.diff(edges)
            steps, values = (np.add.reduceat(array, edges[:-1]) / counts for array in (steps, values))
        low, high = np.quantile(values, [0.05, 0.95])
        logarithmic = bool(values.min() > 0 and high > LOGARITHMIC * low)
        shown = np.log(values) if logarithmic else values
        mean = running_mean(shown, max(1, round(len(shown) * SMOOTHING / 2)))
        return cls(steps, values, np.exp(mean) if logarithmic else mean, logarithmic)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of the drawing: without the outermost percent of single steps, with all means."""
        low, high = np.quantile(self.values, [0.01, 0.99])
        low, high = float(min(low, self.mean.min())), float(max(high, self.mean.max()))
        if low == high:
            return low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        return low, high


def running_mean(values: Float[np.ndarray, " n"], reach: int) -> Float[np.ndarray, " n"]:
    """Mean over the `reach` values on both sides, as far as there are any."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, end = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (total[end] - total[first]) / (end - first)


def draw_curve(points: Sequence[tuple[int, float]], title: str, hint: str = "", name: str = "") -> str:
    """A chart: title, first and last running mean, the curve with its range and steps, and the metric's own name."""
    curve = Curve.of(points)
    low, high = curve.bounds
    scale = [hint] if hint else []
    if curve.logarithmic:
        scale.append("logarithmic")
        low = max(low, float(curve.values[curve.values > 0].min()))
    first, last = number(curve.mean[0]), number(curve.mean[-1])
    path = _path(curve.steps, curve.values, low, high, curve.logarithmic)
    mean = _path(curve.steps, curve.mean, low, high, curve.logarithmic)
    label = escape(f"{title}: from {first} to {last} in {len(points)} steps", quote=True)
    code = f"<code>{escape(name)}</code>" if name else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> <span class="ends">{first} \N{RIGHTWARDS ARROW} '
        f"<em>{last}</em></span></figcaption>"
        f'<div class="axes"><span class="high">{number(high)}</span><span class="low">{number(low)}</span>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="single" d="{path}"/><path class="mean" d="{mean}"/></svg></div>'
        f'<div class="below"><span>step {points[0][0]}</span><span>{escape(", ".join(scale))}</span>'
        f"<span>{points[-1][0]}</span></div>{code}</figure>"
    )


def draw_viewpoint(azimuth: float, *, reliable: bool) -> str:
    """The object from above, its front downwards, and the camera that looks at it from `azimuth` degrees."""
    angle = math.radians(azimuth)
    towards = (math.sin(angle), math.cos(angle))  # azimuth 0 is below, +90 (the object's left) to the right
    camera = [100 + 66 * component for component in towards]
    across = (towards[1], -towards[0])
    sides = [
        " ".join(f"{100 - 24 * t + sign * 32 * a:.1f}" for t, a in zip(towards, across, strict=True))
        for sign in (-1, 1)
    ]
    names = (("front", 100, 192), ("back", 100, 14), ("its left", 184, 103), ("its right", 16, 103))
    labels = "".join(f'<text x="{x}" y="{y}">{name}</text>' for name, x, y in names)
    kind = "camera" if reliable else "camera doubtful"
    return (
        '<svg class="viewpoint" viewBox="-14 0 228 200" role="img" aria-label="the viewpoint, seen from above">'
        '<circle class="ring" cx="100" cy="100" r="66"/>'
        f'<path class="cone" d="M{camera[0]:.1f} {camera[1]:.1f} L{sides[0]} L{sides[1]} Z"/>'
        '<path class="thing" d="M90 86h20q6 0 6 6v14q0 6-6 6h-1l-9 11-9-11h-1q-6 0-6-6v-14q0-6 6-6z"/>'
        f'<circle class="{kind}" cx="{camera[0]:.1f}" cy="{camera[1]:.1f}" r="7"/>{labels}</svg>'
    )


def number(value: float) -> str:
    """A number for people: three digits that count.

    >>> [number(value) for value in (0.0, 23.4567, 125.0, 0.00123456, 2.5e-9)]
    ['0', '23.5', '125', '0.00123', '2.5e-9']
    """
    value = float(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"


def _path(
    steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], low: float, high: float, logarithmic: bool
) -> str:
    """A polyline in a box of 100 x 100, values beyond the bounds cut off; a single point becomes a level line."""
    if len(steps) == 1:
        steps, values = np.array([0.0, 1.0]), np.repeat(values, 2)
    if logarithmic:
        low, high, values = math.log(low), math.log(high), np.log(values)
    x = 100 * (steps - steps[0]) / (steps[-1] - steps[0])
    y = 100 - 100 * np.clip((values - low) / (high - low), 0, 1)
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
