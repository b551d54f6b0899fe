"""Values that change during training, as small callables of the step.

A schedule is written over an interval. With `total` unknown (`schedule(step)`) the interval counts steps, as in the
published configurations; `at(step, total)` reads a schedule with `unit="fraction"` as fractions of `total`, so that
one preset serves short and long runs. The noise schedule of a diffusion model is another thing and lives in
`maquette.diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from maquette.errors import UserError

Unit = Literal["step", "fraction"]


@runtime_checkable
class Schedule(Protocol):
    """Step -> value."""

    def __call__(self, step: int) -> float:
        """The value at `step`, for schedules that count steps."""
        ...

    def at(self, step: int, total: int) -> float:
        """The value at `step` of `total`."""
        ...


def _position(step: int, total: int | None, unit: Unit) -> float:
    """Where `step` is, in the schedule's own unit."""
    if unit == "step":
        return float(step)
    if total is None:
        raise ValueError(
            "this schedule counts fractions of the run; call `at(step, total)` instead of `schedule(step)`"
        )
    if total < 1:
        raise ValueError(f"a run has at least one step, got total={total}")
    return step / total


def _check_unit(unit: str) -> None:
    if unit not in ("step", "fraction"):
        raise UserError(f"a schedule's unit is 'step' or 'fraction', got {unit!r}")


def _check_finite(name: str, *values: float) -> None:
    if not all(math.isfinite(value) for value in values):
        raise UserError(f"{name} must be finite numbers, got {', '.join(str(value) for value in values)}")


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float
    """The value."""

    def __post_init__(self) -> None:
        _check_finite("Constant.value", self.value)

    def __call__(self, step: int) -> float:
        return self.value

    def at(self, step: int, total: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """Straight line from `first` at `begin` to `last` at `end`, constant on both sides.

    value = first + (last - first) clamp((p - begin) / (end - begin), 0, 1), with p the position. `begin == end` is a
    jump: `first` before it, `last` from it on.
    """

    first: float
    """Value up to `begin`."""
    last: float
    """Value from `end` on."""
    end: float = 1.0
    """Where the ramp ends."""
    begin: float = 0.0
    """Where the ramp begins."""
    unit: Unit = "fraction"
    """Whether `begin` and `end` are steps or fractions of the run."""

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_finite("Linear's values", self.first, self.last, self.begin, self.end)
        if self.end < self.begin:
            raise UserError(f"a linear schedule ends after it begins, got begin={self.begin}, end={self.end}")

    def __call__(self, step: int) -> float:
        return self._value(_position(step, None, self.unit))

    def at(self, step: int, total: int) -> float:
        return self._value(_position(step, total, self.unit))

    def _value(self, position: float) -> float:
        if self.begin == self.end:
            return self.last if position >= self.end else self.first
        # Evaluated in this order even past the end, where it may miss `last` by one rounding: timestep bounds truncate
        # the value, and must truncate the same number as the released code does.
        progress = (position - self.begin) / (self.end - self.begin)
        return self.first + (self.last - self.first) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class Exponential:
    """Geometric from `first` at `begin` to `last` at `end`, constant afterwards; a linear warm-up before.

    value = first (last / first)^clamp((p - begin) / (end - begin), 0, 1), with p the position; before `begin` it rises
    from warmup * first at 0 to `first` (a warm-up of 1 is none).
    """

    first: float
    """Value at `begin`."""
    last: float
    """Value from `end` on."""
    end: float = 1.0
    """Where the curve ends."""
    begin: float = 0.0
    """Where the curve begins, and the warm-up ends."""
    warmup: float = 1.0
    """Share of `first` that the schedule begins with."""
    unit: Unit = "fraction"
    """Whether `begin` and `end` are steps or fractions of the run."""

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_finite("Exponential's values", self.first, self.last, self.begin, self.end, self.warmup)
        if not (self.first > 0 and self.last > 0 and self.warmup >= 0):
            raise UserError(
                f"an exponential needs first, last > 0 and warmup >= 0, got {self.first}, {self.last} and {self.warmup}"
            )
        if not 0 <= self.begin < self.end:
            raise UserError(f"an exponential ends after it begins, got begin={self.begin}, end={self.end}")

    def __call__(self, step: int) -> float:
        return self._value(_position(step, None, self.unit))

    def at(self, step: int, total: int) -> float:
        return self._value(_position(step, total, self.unit))

    def _value(self, position: float) -> float:
        if position < self.begin:
            return self.first * (self.warmup + (1 - self.warmup) * position / self.begin)
        progress = min((position - self.begin) / (self.end - self.begin), 1.0)
        return float(self.first * (self.last / self.first) ** progress)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `first` at `begin` to `last` at `end`, constant on both sides: slow, fast, slow.

    value = last + (first - last) (1 + cos(pi clamp((p - begin) / (end - begin), 0, 1))) / 2, with p the position.
    """

    first: float
    """Value up to `begin`."""
    last: float
    """Value from `end` on."""
    end: float = 1.0
    """Where the curve ends."""
    begin: float = 0.0
    """Where the curve begins."""
    unit: Unit = "fraction"
    """Whether `begin` and `end` are steps or fractions of the run."""

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_finite("Cosine's values", self.first, self.last, self.begin, self.end)
        if self.end <= self.begin:
            raise UserError(f"a cosine ends after it begins, got begin={self.begin}, end={self.end}")

    def __call__(self, step: int) -> float:
        return self._value(_position(step, None, self.unit))

    def at(self, step: int, total: int) -> float:
        return self._value(_position(step, total, self.unit))

    def _value(self, position: float) -> float:
        progress = min(max((position - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Piecewise:
    """Milestones: `values[0]` before `milestones[0]`, `values[i + 1]` from `milestones[i]` on.

    Resolutions and batch sizes change so (64 px, then 192, then 256). One value more than milestones.
    """

    values: tuple[float, ...]
    """The values in order."""
    milestones: tuple[float, ...] = ()
    """Where the next value begins; increasing."""
    unit: Unit = "fraction"
    """Whether the milestones are steps or fractions of the run."""

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_finite("Piecewise's values and milestones", *self.values, *self.milestones)
        if len(self.values) != len(self.milestones) + 1:
            raise UserError(
                f"a piecewise schedule has one value more than milestones, got {len(self.values)} values and "
                f"{len(self.milestones)} milestones"
            )
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise UserError(f"milestones increase, got {self.milestones}")

    def __call__(self, step: int) -> float:
        return self._value(_position(step, None, self.unit))

    def at(self, step: int, total: int) -> float:
        return self._value(_position(step, total, self.unit))

    def _value(self, position: float) -> float:
        passed = sum(position >= milestone for milestone in self.milestones)
        return self.values[passed]


def extremes(schedule: Constant | Linear | Exponential | Cosine | Piecewise) -> tuple[float, float]:
    """The lowest and the highest value that a schedule can take.

    >>> extremes(Piecewise((64, 192, 256), (0.4, 0.8)))
    (64, 256)
    """
    if isinstance(schedule, Constant):
        return schedule.value, schedule.value
    if isinstance(schedule, Piecewise):
        return min(schedule.values), max(schedule.values)
    values = [schedule.first, schedule.last]
    if isinstance(schedule, Exponential):
        values.append(schedule.warmup * schedule.first)
    return min(values), max(values)


def constant(value: float) -> Constant:
    """The same value at every step.

    >>> constant(3.0)(12)
    3.0
    """
    return Constant(value)


def linear(first: float, last: float, end: float = 1.0, *, begin: float = 0.0, unit: Unit = "fraction") -> Linear:
    """Straight line from `first` to `last` between `begin` and `end`, constant outside.

    >>> linear(10.0, 1000.0, 5000, unit="step")(1000)
    208.0
    """
    return Linear(first, last, end, begin, unit)


def piecewise(*values: float, milestones: tuple[float, ...], unit: Unit = "fraction") -> Piecewise:
    """`values[0]` before the first milestone, the next value from each milestone on.

    >>> piecewise(64, 192, 256, milestones=(5000, 10000), unit="step")(5000)
    192
    """
    return Piecewise(values, milestones, unit)


def timestep_bounds(
    low: Schedule, high: Schedule, step: int, total: int, num_train_timesteps: int = 1000
) -> tuple[int, int]:
    """Inclusive integer bounds of the diffusion time at `step`, from two schedules of noise fractions in [0, 1].

    The product is truncated, as in the released ImageDream configuration: 0.92 is not exact in binary, so step 1000 of
    its upper ramp gives 919, not 920.
    """
    fractions = (low.at(step, total), high.at(step, total))
    if not 0.0 <= fractions[0] <= fractions[1] <= 1.0:
        raise ValueError(
            f"noise fractions satisfy 0 <= low <= high <= 1, got {fractions[0]} and {fractions[1]} at step {step}"
        )
    return int(num_train_timesteps * fractions[0]), int(num_train_timesteps * fractions[1])
