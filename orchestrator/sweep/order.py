"""In which order nets are fine-tuned once all are scored: fronts of non-dominated ones, each spread out. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def best_first(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of rows of scores (more is better) by non-dominated fronts (NSGA-II, Deb et al. 2002).

    Within a front of several objectives the best in the first one leads, then the other end, then what lies between,
    always in the middle of the widest gap: however few are asked for, they stand for the whole front. Of rows with one
    score, the best first; of equals, the one named first.
    """
    if scores and len(scores[0]) == 1:  # every front is a value's: a sort finds them
        return sorted(range(len(scores)), key=lambda at: (-scores[at][0], at))
    return [front[at] for front in _fronts(scores) for at in spread(len(front))]


def _fronts(scores: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return the fronts, each as `pareto_front` orders it: the first score's best first, of equals the one named first.

    In that order a row is dominated only by rows before it. Where a front holds one that dominates it, so does every
    better front: its own is found by bisection (efficient non-dominated sort, Zhang et al. 2015).
    """
    rows = np.array(scores, dtype=np.float64)
    fronts: list[list[int]] = []
    for at in sorted(range(len(scores)), key=lambda at: [*(-value for value in scores[at]), at]):
        mine = rows[at]

        def is_free(front: list[int], mine: NDArray[np.float64] = mine) -> bool:
            others = rows[front]
            return not ((others >= mine).all(1) & (others > mine).any(1)).any()

        home = bisect_left(fronts, True, key=is_free)
        if home == len(fronts):
            fronts.append([])
        fronts[home].append(at)
    return fronts


def spread(count: int) -> list[int]:
    """Return 0 .. count - 1 in an order that begins with both ends and halves the widest gap each time."""
    found = list(range(count))[:1] + ([count - 1] if count > 1 else [])
    gaps = [(1 - count, 0)]  # (-width, low): of equals, the lowest first
    while len(found) < count:
        width, low = heappop(gaps)
        middle = low + -width // 2
        found.append(middle)
        heappush(gaps, (low - middle, low))
        heappush(gaps, (middle - low + width, middle))
    return found


def evenly(count: int, wanted: int) -> list[int]:
    """Return `wanted` places (at most `count`) spread evenly over 0 .. count - 1, both ends among them."""
    wanted = min(wanted, count)
    if wanted <= 1:
        return [count // 2][:wanted]
    return [round(at * (count - 1) / (wanted - 1)) for at in range(wanted)]
