"""Where a pipeline is cut: layers to stages balanced by cost, stages to ranks by schedule. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Schedules with one stage per rank, with several in a loop (rank 0, 1, 0, 1), and with two in a V (rank 0, 1, 1, 0).
SINGLE = ("gpipe", "1f1b")
LOOP = ("interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble")
V = ("zbv_zero_bubble", "dualpipe_v")
SCHEDULES = (*SINGLE, *LOOP, *V)
# Schedules that compute the gradients of weights apart from those of inputs.
SPLIT_BACKWARD = ("interleaved_zero_bubble", *V)
# A parameter costs its update and its reduction beside what it does to the samples; measured on neither, a tie-breaker.
_OPS_PER_PARAMETER = 6


@dataclass(frozen=True)
class Stages:
    """The cut of a model: names of the layers of every stage, in order, and the rank (pipeline coordinate) of each."""

    layers: tuple[tuple[str, ...], ...]
    ranks: tuple[int, ...]
    schedule: str
    microbatches: int

    @property
    def last_rank(self) -> int:
        """Pipeline coordinate that holds the last stage, and so the outputs."""
        return self.ranks[-1]

    @property
    def ideal_bubble(self) -> float:
        """Share of time a rank idles in theory; see the function of that name."""
        degree = max(self.ranks) + 1
        return ideal_bubble(self.schedule, degree, self.microbatches, len(self.layers) // degree)

    def owned_by(self, rank: int) -> list[int]:
        """Return the stages of a pipeline coordinate, in order."""
        return [stage for stage, owner in enumerate(self.ranks) if owner == rank]


def stage_ranks(schedule: str, degree: int, num_stages: int) -> tuple[int, ...]:
    """Return the pipeline coordinate of every stage."""
    if schedule in V:
        return tuple(min(stage, num_stages - 1 - stage) for stage in range(num_stages))
    return tuple(stage % degree for stage in range(num_stages))


def balanced_cut(costs: Sequence[tuple[int, int]], num_stages: int) -> list[int]:
    """Return how many layers each stage takes so that the dearest stage is as cheap as can be.

    `costs` holds (operations per sample, parameters) per layer. Every stage takes at least one layer.
    Dynamic programming over (layers, stages); raises ValueError when there are fewer layers than stages.
    """
    weights = [flops + _OPS_PER_PARAMETER * params for flops, params in costs]
    if len(weights) < num_stages:
        raise ValueError(f"{len(weights)} layers do not fill {num_stages} stages")
    total = [0]
    for weight in weights:
        total.append(total[-1] + weight)
    best = {(0, 0): (0, 0)}  # (layers, stages) -> (cost of the dearest stage, layers before the last stage)
    for stages in range(1, num_stages + 1):
        for layers in range(stages, len(weights) - (num_stages - stages) + 1):
            options = [
                (max(best[before, stages - 1][0], total[layers] - total[before]), before)
                for before in range(stages - 1, layers)
                if (before, stages - 1) in best
            ]
            best[layers, stages] = min(options)
    counts: list[int] = []
    layers = len(weights)
    for stages in range(num_stages, 0, -1):
        before = best[layers, stages][1]
        counts.append(layers - before)
        layers = before
    return counts[::-1]


def cut_by_counts(names: Sequence[str], counts: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the names in runs of the given lengths."""
    found, start = [], 0
    for count in counts:
        found.append(tuple(names[start : start + count]))
        start += count
    return tuple(found)


def cut_by_names(names: Sequence[str], firsts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the names in runs, a new one beginning at each of `firsts` (in order, none the first layer).

    Raises ValueError naming what does not fit.
    """
    places = [0]
    for first in firsts:
        if first not in names:
            raise ValueError(f"there is no layer '{first}'; layers: {', '.join(names)}")
        at = list(names).index(first)
        if at <= places[-1]:
            raise ValueError(f"layer '{first}' does not come after '{names[places[-1]]}'")
        places.append(at)
    places.append(len(names))
    return tuple(tuple(names[a:b]) for a, b in pairwise(places))


def ideal_bubble(schedule: str, degree: int, microbatches: int, stages_per_rank: int) -> float:
    """Return the share of time a rank idles in theory, forward and backward of every stage taking equally long.

    GPipe and 1F1B: (p-1)/(m+p-1) (Narayanan et al., 2019); interleaved: divided by the stages per rank (Narayanan et
    al., 2021); zero-bubble schedules: 0 once m is at least 2p (Qi et al., 2023), else as interleaved 1F1B.
    """
    if schedule in SPLIT_BACKWARD and microbatches >= 2 * degree:
        return 0.0
    idle = (degree - 1) / stages_per_rank
    return idle / (microbatches + idle)
