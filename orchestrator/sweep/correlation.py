"""How well what a searcher expected of trials agrees in order with what they gave: Kendall's tau and Spearman's rho.

A ranking of sub-nets is worth as much as this number, so every sweep that predicts measures it. It is never made up:
with fewer than three pairs, or values that are all alike, there is none. What two supernets expected is never pooled:
they were trained apart, and their figures are not on one scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.trial import Trial

FEWEST = 3
STAND_ALONE, FINE_TUNED = "stand-alone", "fine-tuned"
CONTROL = "control"
"""Origin of a trial that trains a net from drawn weights, to compare."""


@dataclass(frozen=True)
class Correlation:
    """Of one metric over `pairs` (expected, given). `against`: trainings from drawn weights, or from inherited ones.

    `ranked_by` is the supernet that expected it ("": the sweep does not say), `earlier`: not the sweep's newest one.
    `kendall` is tau-b, which counts ties (Kendall 1945), `spearman` rho; None: there is none, and `why` says so.
    """

    against: str
    metric: str
    pairs: int
    kendall: float | None = None
    spearman: float | None = None
    why: str = ""
    ranked_by: str = ""
    earlier: bool = False

    def describe(self) -> str:
        """Return it in words: `Kendall 0.67, Spearman 0.80 over 4 stand-alone trainings (val/accuracy)`."""
        whose = f", ranked by {self.ranked_by or 'an earlier supernet'}" if self.earlier else ""
        over = f"over {self.pairs} {self.against} training{'s' if self.pairs != 1 else ''} ({self.metric}){whose}"
        if self.kendall is None or self.spearman is None:
            return f"not known {over}: {self.why}"
        return f"Kendall {self.kendall:.2f}, Spearman {self.spearman:.2f} {over}"


def correlations(trials: Iterable[Trial], objectives: Iterable[Objective]) -> list[Correlation]:
    """Return the rank correlation of what was expected, against trainings of either kind; [] when nothing was.

    The metric is the first objective that was predicted. Trials that ended early do not count. Those of the newest
    supernet come first (that of the newest trial that has one); of others only where there is a figure.
    """
    known = [trial for trial in trials if trial.predicted]
    metric = next((each.name for each in objectives if any(each.name in trial.predicted for trial in known)), None)
    if metric is None:
        return []
    rankers = list(dict.fromkeys(trial.ranked_by for trial in sorted(known, key=lambda trial: -trial.number)))
    found = []
    for ranker in rankers:
        for against in (STAND_ALONE, FINE_TUNED):
            pairs = _pairs((trial for trial in known if trial.ranked_by == ranker), against, metric)
            each = replace(correlate(against, metric, pairs), ranked_by=ranker, earlier=ranker != rankers[0])
            if each.kendall is not None or (not each.earlier and (pairs or against == STAND_ALONE)):
                found.append(each)
    return found


def _pairs(trials: Iterable[Trial], against: str, metric: str) -> list[tuple[float, float]]:
    return [
        (trial.predicted[metric], trial.values[metric])
        for trial in trials
        if trial.state == "finished" and (trial.origin == CONTROL) == (against == STAND_ALONE)
        if metric in trial.values and metric in trial.predicted
    ]


def correlate(against: str, metric: str, pairs: list[tuple[float, float]]) -> Correlation:
    """Return the correlation of pairs, or why there is none."""
    if len(pairs) < FEWEST:
        return Correlation(against, metric, len(pairs), why=f"at least {FEWEST} are needed")
    from scipy.stats import kendalltau, spearmanr

    expected, given = zip(*pairs, strict=True)
    if len(set(expected)) == 1 or len(set(given)) == 1:
        return Correlation(against, metric, len(pairs), why="all values are alike")
    kendall, spearman = float(kendalltau(expected, given).statistic), float(spearmanr(expected, given).statistic)
    if not (math.isfinite(kendall) and math.isfinite(spearman)):
        return Correlation(against, metric, len(pairs), why="some value is not finite")
    return Correlation(against, metric, len(pairs), kendall, spearman)


def as_metrics(found: Iterable[Correlation]) -> dict[str, float]:
    """Return the newest supernet's as metrics: `ranking/stand_alone/kendall`, ..., and the number of pairs."""
    metrics: dict[str, float] = {}
    for each in found:
        if each.earlier:
            continue
        place = f"ranking/{each.against.replace('-', '_')}"
        metrics[f"{place}/pairs"] = float(each.pairs)
        if each.kendall is not None and each.spearman is not None:
            metrics |= {f"{place}/kendall": each.kendall, f"{place}/spearman": each.spearman}
    return metrics


def as_tags(found: Iterable[Correlation]) -> Mapping[str, str]:
    """Return the newest supernet's as tags of the sweep, in words."""
    return {f"ranking.{each.against.replace('-', '_')}": each.describe() for each in found if not each.earlier}


def as_rows(found: Iterable[Correlation]) -> list[dict[str, Any]]:
    """Return them as plain data."""
    return [
        {
            "against": each.against, "metric": each.metric, "pairs": each.pairs,
            "kendall": each.kendall, "spearman": each.spearman, "why": each.why,
            "ranked_by": each.ranked_by, "earlier": each.earlier,
        }
        for each in found
    ]  # fmt: skip
