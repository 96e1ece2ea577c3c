"""The decisions of population based training (Jaderberg et al., 2017): who is replaced, by whom, with which values.

Pure: functions of scores, values and random numbers that are given. A score is the objective turned so that more is
better; -inf is that of a member without a result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator import plugins
from orchestrator.sweep.point import Point
from orchestrator.sweep.space import Param, Space


@dataclass(frozen=True)
class Standing:
    """How a member of a generation ended: the score of its last evaluation, and the values that it had."""

    member: int
    score: float
    point: Point


@dataclass(frozen=True)
class Child:
    """What a member of the next generation is: whose checkpoint it begins from, and its values."""

    parent: int
    point: Point
    is_changed: bool


class Breeder(Protocol):
    """A searcher whose trials begin from one another's checkpoints: beside `ask`, which gives the first generation's
    points, and `tell`, it says how large a population is, how many evaluations a generation lasts, and `breed`s.

    It is registered under `orchestrator.searchers`: what may change in mid-training is checked before anything starts,
    when no user's code is run, so that one that is named by its import path is not known to breed.
    """

    population: int
    interval: int

    def breed(self, generation: int, member: int, attempt: int, former: Sequence[Standing]) -> Child | None:
        """Return a member of a generation (from 1), given all standings of the former one; None: nobody is alive.

        `attempt` counts from 0 what was infeasible before. The answer depends on nothing else, so that a sweep that is
        resumed decides as one that was never interrupted.
        """


def breeds(sweep: Mapping[str, Any]) -> bool:
    """Say whether a sweep (as plain data) has a searcher that is registered and breeds."""
    search = sweep.get("search")
    use = search.get("use") if isinstance(search, Mapping) else None
    if not isinstance(use, str) or plugins.find_problem("searchers", use) is not None:
        return False
    return use in plugins.names("searchers") and hasattr(plugins.load("searchers", use), "breed")


def share_of(population: int, quantile: float) -> int:
    """Return how many members a quantile is: at least one, at most half of them."""
    return min(population // 2, max(1, math.ceil(population * quantile - 1e-9)))


def choose_parent(former: Sequence[Standing], member: int, count: int, numbers: random.Random) -> int | None:
    """Return whose checkpoint a member begins from, by truncation selection (section 4.1.1 of the paper).

    The `count` worst, and all without a result, begin from one of the `count` best, drawn evenly; the others go on
    from their own. Of equal scores the lower member counts as better. None when nobody has a result.
    """
    ranked = sorted(former, key=lambda each: (-each.score, each.member))
    alive = [each.member for each in ranked if math.isfinite(each.score)]
    best = alive[:count]
    worst = {each.member for each in ranked[-count:]} - set(best)
    if not best:
        return None
    return numbers.choice(best) if member in worst or member not in alive else member


def explore(space: Space, point: Point, numbers: random.Random, *, perturb: float, resample: float) -> Point:
    """Return changed values: each is drawn anew with probability `resample`, else moved (see `moved`)."""
    found: dict[str, Any] = {}
    for param in space.params:
        anew, unit, up = numbers.random() < resample, numbers.random(), numbers.random() < 0.5
        if space.is_active(param, found):
            known = param.path in point and not anew
            found[param.path] = moved(param, point[param.path], perturb, up=up) if known else param.at(unit)
    return found


def moved(param: Param, value: Any, factor: float, *, up: bool) -> Any:
    """Return a number multiplied (`up`) or divided by `factor`, kept in its range, on its grid, at least one step away.

    An ordered choice (numbers that rise or fall) moves to its neighbour. What cannot move on turns round; what has no
    order stays.
    """
    for way in (up, not up):
        found = _neighbour(param, value, up=way) if param.values is not None else _scaled(param, value, factor, up=way)
        if found != value:
            return found
    return value


def _neighbour(param: Param, value: Any, *, up: bool) -> Any:
    values = list(param.values or ())
    if not is_ordered(values) or value not in values:
        return value
    index = values.index(value) + (1 if up else -1)
    return values[index] if 0 <= index < len(values) else value


def is_ordered(values: Sequence[Any]) -> bool:
    """Say whether choices are numbers that rise or fall."""
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        return False
    rising = sorted(set(values))
    return list(values) in (rising, rising[::-1])


def _scaled(param: Param, value: float, factor: float, *, up: bool) -> Any:
    scaled = value * factor if up else value / factor
    least = param.step or (1 if param.whole else None)
    if least is None:
        return min(param.high, max(param.low, float(f"{scaled:.6g}")))
    now = round((value - param.low) / least)
    then = round((scaled - param.low) / least)
    if then == now:
        then = now + (1 if up else -1)
    most = math.floor((param.high - param.low) / least + 1e-9)
    index = min(most, max(0, then))
    found = param.low + index * least
    return round(found) if param.whole else float(f"{found:.12g}")
