"""Schedules meet their end points, and reproduce the released configuration's ramps to the integer."""

from __future__ import annotations

import json

import pytest

from maquette.errors import UserError
from maquette.schedules import (
    Constant,
    Exponential,
    Linear,
    Piecewise,
    Schedule,
    constant,
    linear,
    piecewise,
    timestep_bounds,
)


def test_released_ramps_are_reproduced(goldens):
    document = json.loads((goldens / "imagedream" / "anneal.json").read_text())

    def ramp(name: str) -> Linear:
        begin, first, last, end = document[name]
        return linear(first, last, end, begin=begin, unit="step")

    low, high, orient = ramp("min_spec"), ramp("max_spec"), ramp("orient_spec")
    assert document["rows"]
    for row in document["rows"]:
        step = row["step"]
        assert low(step) == pytest.approx(row["min_percent"], rel=1e-12)
        assert high(step) == pytest.approx(row["max_percent"], rel=1e-12)
        assert orient(step) == pytest.approx(row["lambda_orient"], rel=1e-12)
        assert timestep_bounds(low, high, step, 12_500) == (row["min_t"], row["max_t"])


def test_linear_is_constant_outside_and_straight_inside():
    ramp = linear(2.0, 4.0, 20, begin=10, unit="step")
    assert [ramp(step) for step in (0, 10, 15, 20, 99)] == [2.0, 2.0, 3.0, 4.0, 4.0]


def test_linear_of_no_length_jumps():
    assert [linear(1.0, 5.0, 3, begin=3, unit="step")(step) for step in (2, 3, 4)] == [1.0, 5.0, 5.0]


def test_piecewise_changes_at_its_milestones():
    resolution = piecewise(64, 192, 256, milestones=(5000, 10_000), unit="step")
    assert [resolution(step) for step in (0, 4999, 5000, 9999, 10_000)] == [64, 64, 192, 192, 256]


@pytest.mark.parametrize("total", [1, 100, 12_500])
def test_fractions_scale_with_the_run(total):
    ramp, steps = linear(0.0, 1.0, 0.5), piecewise(1, 2, milestones=(0.4,))
    assert ramp.at(0, total) == 0.0 and ramp.at(total, total) == 1.0
    assert steps.at(0, total) == 1 and steps.at(total, total) == 2
    if total > 1:
        assert ramp.at(total // 4, total) == pytest.approx(0.5)
        assert steps.at(int(0.4 * total), total) == 2 and steps.at(int(0.4 * total) - 1, total) == 1


def test_step_schedules_ignore_the_total():
    ramp = linear(0.0, 1.0, 10, unit="step")
    assert ramp.at(5, 1000) == ramp.at(5, 7) == ramp(5) == 0.5


def test_fractions_need_a_total():
    for schedule in (linear(0.0, 1.0), piecewise(1, 2, milestones=(0.5,))):
        with pytest.raises(ValueError, match="at\\(step, total\\)"):
            schedule(3)
        with pytest.raises(ValueError, match="at least one step"):
            schedule.at(0, 0)


def test_constant_needs_nothing():
    assert constant(3.5)(7) == constant(3.5).at(7, 10) == 3.5


@pytest.mark.parametrize("schedule", [Constant(1.0), Linear(0.0, 1.0), Piecewise((1.0,))])
def test_all_are_schedules_and_values(schedule):
    assert isinstance(schedule, Schedule)
    assert hash(schedule) == hash(type(schedule)(**schedule.__dict__))


def test_impossible_schedules_are_named():
    with pytest.raises(UserError, match="ends after it begins"):
        linear(0.0, 1.0, 1, begin=2, unit="step")
    with pytest.raises(UserError, match="one value more"):
        piecewise(1, 2, 3, milestones=(0.5,))
    with pytest.raises(UserError, match="increase"):
        piecewise(1, 2, 3, milestones=(0.5, 0.5))
    with pytest.raises((UserError, TypeError), match="epoch"):  # the suite's type checker may speak first
        linear(0.0, 1.0, unit="epoch")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="finite"):
        constant(float("nan"))
    with pytest.raises(ValueError, match="low <= high"):
        timestep_bounds(constant(0.9), constant(0.5), 0, 10)


def test_an_exponential_warms_up_and_falls_by_equal_factors():
    rate = Exponential(0.1, 0.001, end=300, begin=100, warmup=0.01, unit="step")
    assert rate(0) == pytest.approx(0.001) and rate(50) == pytest.approx(0.0505) and rate(100) == pytest.approx(0.1)
    assert rate(200) == pytest.approx(0.01) and rate(300) == rate(999) == pytest.approx(0.001)
    assert Exponential(1.0, 0.1).at(5, 10) == pytest.approx(0.1**0.5)
    assert Exponential(1.0, 0.1, begin=0.5).at(2, 10) == 1.0
    for wrong in ({"last": 0.0}, {"warmup": -1.0}, {"begin": 1.0}):
        with pytest.raises(UserError):
            Exponential(**{"first": 1.0, "last": 0.1, **wrong})
