"""Laws of the curves, and where the viewpoint is drawn."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maquette.report.drawings import POINTS, Curve, draw_curve, draw_viewpoint, running_mean

finite = st.floats(-1e6, 1e6)


@settings(deadline=None, max_examples=50)
@given(st.lists(finite, min_size=1, max_size=60), st.integers(0, 70))
def test_the_running_mean_is_the_mean_of_what_is_near(values, reach):
    array = np.array(values)
    slow = [array[max(0, i - reach) : i + reach + 1].mean() for i in range(len(array))]
    np.testing.assert_allclose(running_mean(array, reach), slow, rtol=1e-9, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(POINTS + 1, 3000), st.integers(0, 10))
def test_long_curves_are_averaged_and_keep_their_mean(count, seed):
    values = np.random.default_rng(seed).normal(size=count)
    curve = Curve.of(list(enumerate(values)))
    assert len(curve.steps) == POINTS and (np.diff(curve.steps) > 0).all()
    sizes = np.diff(np.linspace(0, count, POINTS + 1).round())
    assert (curve.values * sizes).sum() / count == pytest.approx(values.mean())


def test_curves_over_orders_of_magnitude_are_logarithmic():
    assert Curve.of([(step, math.exp(-step / 10)) for step in range(100)]).logarithmic
    assert not Curve.of([(step, 2 - step / 100) for step in range(100)]).logarithmic
    assert not Curve.of([(step, math.exp(-step / 10) - 0.01) for step in range(100)]).logarithmic


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(0, 3.0), (1, 3.0), (2, 3.0)],
        [(0, 0.0), (5, 0.0)],
        [(step, 10.0 ** (-step / 10)) for step in range(100)],
        [(step, (-1.0) ** step * step) for step in range(2000)],
    ],
)
def test_every_chart_is_well_formed_and_stays_in_its_box(points):
    chart = draw_curve(points, "Likeness to <it> & 'that'", "higher is better", "a.psnr")
    figure = ElementTree.fromstring(chart)
    assert figure.find(".//b").text == "Likeness to <it> & 'that'" and figure.find("code").text == "a.psnr"
    paths = [path.get("d") for path in figure.iter("path")]
    assert len(paths) == 2
    for path in paths:
        numbers = np.array(re.findall(r"-?[\d.]+", path), float)
        assert len(numbers) >= 4 and numbers.min() >= 0 and numbers.max() <= 100


@pytest.mark.parametrize("azimuth, x, y", [(0, 0, 1), (90, 1, 0), (180, 0, -1), (-90, -1, 0)])
def test_the_viewpoint_is_drawn_on_its_side(azimuth, x, y):
    drawing = ElementTree.fromstring(draw_viewpoint(azimuth, reliable=True))
    camera = next(item for item in drawing.iter("circle") if item.get("class") == "camera")
    assert float(camera.get("cx")) == pytest.approx(100 + 66 * x, abs=0.1)
    assert float(camera.get("cy")) == pytest.approx(100 + 66 * y, abs=0.1)
    names = {item.text: (float(item.get("x")), float(item.get("y"))) for item in drawing.iter("text")}
    assert names["front"][1] > 150 > 50 > names["back"][1] and names["its left"][0] > 150


def test_a_doubtful_viewpoint_looks_different():
    assert draw_viewpoint(30, reliable=False) != draw_viewpoint(30, reliable=True)
