"""In which order nets are fine-tuned once all are scored: fronts of non-dominated ones, each spread out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from orchestrator.sweep.objectives import pareto_front


def best_first(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of rows of scores (more is better) by non-dominated fronts (NSGA-II, Deb et al. 2002).

    Within a front of several objectives the best in the first one leads, then the other end, then what lies between,
    always in the middle of the widest gap: however few are asked for, they stand for the whole front. Of rows with one
    score, the best first; of equals, the one named first.
    """
    if scores and len(scores[0]) == 1:  # every front is a value's: a sort finds them
        return sorted(range(len(scores)), key=lambda at: (-scores[at][0], at))
    left, found = dict(enumerate(scores)), list[int]()
    while left:
        front = pareto_front(left)
        found += [front[at] for at in spread(len(front))]
        for key in front:
            del left[key]
    return found


def spread(count: int) -> list[int]:
    """Return 0 .. count - 1 in an order that begins with both ends and halves the widest gap each time."""
    found = list(range(count))[:1] + ([count - 1] if count > 1 else [])
    while len(found) < count:
        known = sorted(found)
        gaps = [(high - low, -low) for low, high in pairwise(known)]
        width, low = max(gaps)
        found.append(-low + width // 2)
    return found


def evenly(count: int, wanted: int) -> list[int]:
    """Return `wanted` places (at most `count`) spread evenly over 0 .. count - 1, both ends among them."""
    wanted = min(wanted, count)
    if wanted <= 1:
        return [count // 2][:wanted]
    return [round(at * (count - 1) / (wanted - 1)) for at in range(wanted)]
