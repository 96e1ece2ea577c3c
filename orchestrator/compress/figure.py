"""One picture of a compression: every step by size and quality, and how much faster the file is. Called by `stage`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.compress.pipeline import Outcome

_INK, _BLUE, _RED = "#24292f", "#1f6feb", "#d1541f"


def draw(outcome: Outcome, path: Path) -> None:
    """Write the picture: left size against quality on the validation split, right speed-up of the checked file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _sizes(left, outcome)
    _speeds(right, outcome)
    figure.savefig(path)


def _sizes(axes: Any, outcome: Outcome) -> None:
    steps = (outcome.baseline, *outcome.steps)
    name = next((key for key in steps[0].metrics if key.endswith("/accuracy")), next(iter(steps[0].metrics)))
    sizes = [step.size_bytes / 1024 for step in steps]
    values = [step.metrics.get(name, float("nan")) for step in steps]
    axes.plot(sizes, values, color="#b6bcc4", lw=1.0, zorder=1)
    axes.scatter(sizes, values, color=[_RED, *[_BLUE] * (len(steps) - 1)], zorder=2)
    for step, x, y in zip(steps, sizes, values, strict=True):
        axes.annotate(step.name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8, color=_INK)
    axes.set_xscale("log")
    axes.set_xlabel("KiB in a file (log)")
    axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=_INK)


def _speeds(axes: Any, outcome: Outcome) -> None:
    rows = [row for row in outcome.timing if row["verdict"] == "ok"]
    names = [f"batch {row['batch']}\n{_where(row)}" for row in rows]
    axes.set_title("times faster than fp32 eager", loc="left", fontsize=11, fontweight="bold", color=_INK)
    if not rows:
        axes.text(0.5, 0.5, "no figure", ha="center", va="center", transform=axes.transAxes, color=_INK)
        return
    bars = axes.bar(names, [row["speedup"] for row in rows], color=_BLUE)
    axes.bar_label(bars, fmt="%.1f x", fontsize=8)
    axes.axhline(1.0, color=_RED, lw=0.9)


def _where(row: Mapping[str, Any]) -> str:
    return "GPU" if row.get("target") == "cuda" else f"{row['threads']} thr."
