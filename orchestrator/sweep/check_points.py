"""Does any point satisfy all constraints, and does every condition hold for some? Asked of start points, then of the
whole grid or of many drawn points. Called by `sweep.check`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.errors import Problem
from orchestrator.spec.expression import Expression, ExpressionError
from orchestrator.sweep.check_names import parsed, texts
from orchestrator.sweep.feasible import Feasible, Limits, judge_point
from orchestrator.sweep.point import Point
from orchestrator.sweep.source import complete
from orchestrator.sweep.space import Param, Space, lookup, speaks_of
from orchestrator.wording import join

DRAWS = 10_000
"""Points looked at before something counts as holding for none: twenty microseconds each."""
JUDGED = 500
"""Of these so many at most are put into the job and planned, which takes a millisecond each."""


def condition_problems(space: Space, sweep: Mapping[str, Any], known: Sequence[Param]) -> Iterator[Problem]:
    """Yield a problem for every `when` that holds for no point; `known` are all parameters, sound or not."""
    sound = {param.path for param in space.params}
    left = {
        param.path: param
        for param in space.params
        if param.when is not None and all(each.path in sound for each in known if speaks_of(param, each))
    }
    for point in _points(space, sweep) if left else ():
        left = {path: param for path, param in left.items() if path not in point}
        if not left:
            return
    for param in left.values():
        message = f"{param.when.text if param.when else ''} holds for no point ({_asked(space)} tried)"
        yield Problem(
            join("sweep.space", param.path, "when"), message, "mend it, or leave the parameter out", "no-point"
        )


def constraint_problems(
    data: Mapping[str, Any], sweep: Mapping[str, Any], space: Space, limits: Limits
) -> list[Problem]:
    """Return a problem when no point satisfies all constraints.

    Those that need no plan are first asked of the point alone, which is cheap; what seems to satisfy them is judged
    first. Defaults of other parts may make that wrong, so some of the others are judged as well.
    """
    given = {text: each for text in texts(sweep.get("constraints")) if (each := parsed(text)) is not None}
    cheap = [each for each in given.values() if not any(name.startswith("plan.") for name in each.names)]
    if not given:
        return []
    ask = _Ask(data, list(given), limits)
    others: list[Point] = []
    for point in _points(space, sweep):
        if all(_seems_to_hold(each, point, space) for each in cheap):
            if ask.is_possible(point):
                return []
            if ask.judged == JUDGED:
                break
        elif len(others) < JUDGED:
            others.append(point)
    if any(ask.is_possible(point) for point in others[: JUDGED - ask.judged]) or not ask.reasons:
        return []
    (often, _), *_ = ask.reasons.most_common(1)
    which = next((index for index, text in enumerate(texts(sweep["constraints"])) if often.startswith(text)), 0)
    message = f"no point satisfies all constraints ({_asked(space)} tried): {often}"
    return [Problem(join("sweep.constraints", which), message, "loosen it, or widen the space", "no-point")]


class _Ask:
    """Judges points and counts which constraints they break."""

    def __init__(self, data: Mapping[str, Any], constraints: Sequence[str], limits: Limits) -> None:
        self._data, self._constraints, self._limits = data, constraints, limits
        self.judged = 0
        self.reasons: Counter[str] = Counter()

    def is_possible(self, point: Point) -> bool:
        """Say whether constraints allow the point; whether it fits this machine is asked when the sweep runs."""
        self.judged += 1
        judged = judge_point(self._data, point, self._constraints, self._limits)
        if isinstance(judged, Feasible) or judged.kind in ("plan", "memory"):
            return True
        if judged.kind == "constraint":
            self.reasons[judged.reason] += 1
        return False


def _points(space: Space, sweep: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the start points, then every point of a space that is small enough, else drawn ones."""
    starts = sweep.get("start")
    yield from (
        complete(each, space) for each in (starts if isinstance(starts, list) else []) if isinstance(each, dict)
    )
    if _is_small(space):
        yield from space.grid()
        return
    numbers = random.Random(0)
    for _ in range(DRAWS):
        yield space.from_units([numbers.random() for _ in space.params])


def _is_small(space: Space) -> bool:
    size = space.size(DRAWS)
    return size is not None and size < DRAWS


def _asked(space: Space) -> str:
    return f"all {space.size(DRAWS)} points" if _is_small(space) else f"{DRAWS:,} drawn points"


def _seems_to_hold(constraint: Expression, point: Point, space: Space) -> bool:
    try:
        return constraint.holds(lambda path: lookup(path, point, space.base))
    except ExpressionError:
        return True  # it speaks of a key that only the whole job has
