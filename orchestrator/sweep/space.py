"""`Space`: the parameters of a sweep as pure arithmetic. From numbers between 0 and 1 to a point, and its grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.expression import Expression, ExpressionError, parse
from orchestrator.spec.sweep import SweepParam
from orchestrator.sweep.point import Point, plain_copy, value_at


@dataclass(frozen=True)
class Param:
    """One parameter: choices, or a range. `when` says under which values of earlier parameters it is there."""

    path: str
    values: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: Expression | None = None

    @property
    def count(self) -> int | None:
        """Number of values; None for a range of real numbers."""
        if self.values is not None:
            return len(self.values)
        if self.step is not None:
            return math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return int(self.high - self.low) + 1 if self.whole else None

    def item(self, index: int) -> Any:
        """Return value number `index` (from 0) of a parameter that can be counted."""
        if self.values is not None:
            return plain_copy(self.values[index])
        value = self.low + index * (self.step or 1)
        return round(value) if self.whole else float(f"{value:.12g}")

    def at(self, unit: float) -> Any:
        """Return the value at `unit` in [0, 1): equal shares for choices, even over the range or its logarithm."""
        if self.count is not None and not self.log:
            return self.item(min(self.count - 1, int(unit * self.count)))
        if self.log:
            # Whole numbers get the interval that rounds to them, so that both ends have their full share.
            low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
            low = max(low, 0.5) if self.whole else low
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = self.low + unit * (self.high - self.low)
        if self.whole:
            return min(int(self.high), max(int(self.low), round(value)))
        return min(self.high, max(self.low, float(f"{value:.6g}")))

    def holds(self, value: Any) -> bool:
        """Say whether the parameter can take this value."""
        if self.values is not None:
            return plain_copy(value) in [plain_copy(each) for each in self.values]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        inside = self.low <= value <= self.high
        if self.step is not None:
            index = round((value - self.low) / self.step)
            return inside and math.isclose(self.low + index * self.step, value, rel_tol=1e-9, abs_tol=1e-12)
        return inside and (not self.whole or float(value).is_integer())

    def probes(self) -> list[tuple[str, Any]]:
        """Return the values to try before anything starts, each with where it stands (`0`, `min`, ...)."""
        if self.values is not None:
            return [(str(index), value) for index, value in enumerate(self.values)]
        if self.step is not None and (self.count or 0) <= 64:
            ends = {0: "min", (self.count or 1) - 1: "max"}
            return [(ends.get(index, "step"), self.item(index)) for index in range(self.count or 0)]
        return [("min", self.at(0.0)), ("max", self.at(1.0))]

    def describe(self) -> str:
        """Return what it may be, in words."""
        if self.values is not None:
            return f"{len(self.values)} choices" if len(self.values) != 1 else "1 choice"
        how = " log" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}" + (" (whole)" if self.whole else "")


@dataclass(frozen=True)
class Space:
    """All parameters, each after those its `when` speaks of. `base` is the job's plain data with every default."""

    params: tuple[Param, ...]
    base: Mapping[str, Any]

    def from_units(self, units: Sequence[float]) -> Point:
        """Return the point at these coordinates in [0, 1), one per parameter; those of absent parameters are unused."""
        point: dict[str, Any] = {}
        for param, unit in zip(self.params, units, strict=True):
            if self.is_active(param, point):
                point[param.path] = param.at(unit)
        return point

    def is_active(self, param: Param, point: Point) -> bool:
        """Say whether a parameter is there, given the values of those before it."""
        if param.when is None:
            return True
        try:
            return param.when.holds(lambda path: lookup(path, point, self.base))
        except ExpressionError:
            return False  # it speaks of a key that the chosen part does not have

    def grid(self) -> Iterator[Point]:
        """Yield every point once. All parameters must have a `count`."""
        yield from self._grid(0, {})

    def _grid(self, index: int, point: dict[str, Any]) -> Iterator[Point]:
        if index == len(self.params):
            yield dict(point)
            return
        param = self.params[index]
        if not self.is_active(param, point):
            yield from self._grid(index + 1, point)
            return
        for number in range(param.count or 0):
            yield from self._grid(index + 1, {**point, param.path: param.item(number)})

    def size(self, limit: int = 1_000_000) -> int | None:
        """Return the number of points, counted up to `limit`; None when there is no end to them."""
        if any(param.count is None for param in self.params):
            return None
        if all(param.when is None for param in self.params):
            return math.prod(param.count or 1 for param in self.params)
        return sum(1 for _, _ in zip(self.grid(), range(limit), strict=False))

    def holds(self, point: Point) -> bool:
        """Say whether a point (of an earlier sweep) lies in this space: the same parameters are there and hold."""
        walked: dict[str, Any] = {}
        for param in self.params:
            if self.is_active(param, walked) != (param.path in point):
                return False
            if param.path in point:
                if not param.holds(point[param.path]):
                    return False
                walked[param.path] = point[param.path]
        return len(walked) == len(point)


def lookup(path: str, point: Point, base: Mapping[str, Any]) -> Any:
    """Return what the job of a point has at a path: the point's own value, else the base's. Raises KeyError."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        above = ".".join(parts[:cut])
        if above in point:
            return value_at(plain_copy(point[above]), ".".join(parts[cut:])) if cut < len(parts) else point[above]
    below = {each[len(path) + 1 :]: value for each, value in point.items() if each.startswith(f"{path}.")}
    found = value_at(base, path)
    if below and isinstance(found, Mapping):
        return {**found, **{key: value for key, value in below.items() if "." not in key}}
    return found


def build_param(path: str, given: SweepParam | Sequence[Any]) -> Param:
    """Return the parameter that the job file describes."""
    if not isinstance(given, SweepParam):
        return Param(path, tuple(given))
    when = parse(given.when) if given.when is not None else None
    if given.values is not None:
        return Param(path, given.values, when=when)
    low = 0 if given.min is None else given.min  # `or` would make a whole number of 0.0
    high = 0 if given.max is None else given.max
    whole = all(isinstance(each, int) for each in (low, high, given.step or 1))
    step = None if given.step is None else float(given.step)
    return Param(path, None, float(low), float(high), given.log, step, whole, when)


def sort_params(params: Sequence[Param]) -> tuple[list[Param], list[Param]]:
    """Return the parameters in an order in which each comes after those its `when` names; and those in a circle."""
    left, done = list(params), list[Param]()
    while left:
        ready = [param for param in left if not any(speaks_of(param, other) for other in left if other is not param)]
        if not ready:
            return done, left
        done.append(ready[0])
        left.remove(ready[0])
    return done, []


def speaks_of(param: Param, other: Param) -> bool:
    """Say whether the `when` of a parameter speaks of another one."""
    names = param.when.names if param.when is not None else ()
    return any(f"{name}.".startswith(f"{other.path}.") or f"{other.path}.".startswith(f"{name}.") for name in names)
