"""The figures of a run as PNG files: loss, metric curves, confusion matrix, experts. Drawn from the spool, at the end.

matplotlib's Figure with the Agg canvas, never pyplot: no global state, no display, no leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolReader
from orchestrator.tracking.cursor import spool_files
from orchestrator.tracking.expert_figure import experts_figure, read_loads
from orchestrator.tracking.request import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = dict[str, list[tuple[int, float]]]
COLORS = {"train": "#8a94a6", "val": "#1f6feb", "test": "#d1541f"}
INK = "#24292f"
MAX_MARKED = 40


def read_series(run: RunDir) -> Series:
    """Return (step, value) pairs by metric key, in order of steps; a step repeated after a resume counts once."""
    found: dict[str, dict[int, float]] = {}
    for record in read_records(run, "metrics"):
        for key, value in record.get("values", {}).items():
            found.setdefault(key, {}).setdefault(int(record["step"]), float(value))
    return {key: sorted(points.items()) for key, points in found.items()}


def read_records(run: RunDir, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the spool's records of a kind, file by file."""
    for path in spool_files(run):
        offset = 0
        while True:
            lines, offset = SpoolReader(path).read(offset)
            if not lines:
                break
            yield from (line.record for line in lines if line.record is not None and line.record.get("kind") == kind)


def draw_figures(
    run: RunDir,
    confusion: Sequence[Sequence[int]] | None = None,
    labels: Sequence[str] | None = None,
    best_step: int | None = None,
) -> list[Path]:
    """Write `loss.png`, a PNG for each other validation metric, `confusion_matrix.png` and `experts.png`; return them.

    `confusion[i][j]` counts samples of class i that were taken for class j. A figure without data is left out.
    """
    series = read_series(run)
    folder = run.artifacts / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    names = ["loss", *sorted({key[4:] for key in series if key.startswith("val/")} - {"loss"})]
    written: list[Path] = []
    for name in names:
        curves = {split: series[f"{split}/{name}"] for split in COLORS if f"{split}/{name}" in series}
        if curves:
            written.append(_save(curve_figure(name, curves, best_step), folder / f"{name.replace('/', '_')}.png"))
    if confusion:
        written.append(_save(confusion_figure(confusion, labels), folder / "confusion_matrix.png"))
    loads = read_loads(read_records(run, "experts"))
    if loads:
        written.append(_save(experts_figure(loads, series), folder / "experts.png"))
    return written


def draw_run(run: RunDir) -> Path | None:
    """Draw what a run's folder holds (spool, `artifacts/confusion.json`, `result.json`); return the folder of figures.

    None when there is nothing to draw.
    """
    page, fitted = read_json(run.artifacts / "confusion.json"), read_json(run.result)
    best = fitted.get("best_step")
    written = draw_figures(
        run, page.get("counts"), page.get("classes") or None, best if isinstance(best, int) else None
    )
    return written[0].parent if written else None


def curve_figure(name: str, curves: Mapping[str, Sequence[tuple[int, float]]], best_step: int | None = None) -> Figure:
    """Return a figure of one metric over optimiser steps, a line for each split."""
    figure, axes = _blank(7.2, 4.2)
    for split, points in curves.items():
        steps, values = [step for step, _ in points], [value for _, value in points]
        marker = "o" if len(points) <= MAX_MARKED and split != "train" else ""
        axes.plot(
            steps, values, color=COLORS.get(split, INK), label=f"{split}/{name}", lw=1.8, marker=marker, markersize=4
        )
    if best_step is not None:
        axes.axvline(
            best_step, color=COLORS["val"], lw=0.9, ls=(0, (4, 3)), label=f"best checkpoint (step {best_step})"
        )
    axes.set_xlabel("optimiser step", color=INK)
    axes.set_title(name, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.grid(axis="y", color="#e6e8eb", lw=0.8)
    axes.legend(frameon=False, fontsize=9)
    return figure


def confusion_figure(counts: Sequence[Sequence[int]], labels: Sequence[str] | None = None) -> Figure:
    """Return a heat map, a row for each true class, shaded by the share of the row; counts written in when they fit."""
    size = len(counts)
    names = [str(label) for label in (labels or range(size))]
    shares = [[value / max(1, sum(row)) for value in row] for row in counts]
    side = min(9.0, 2.6 + 0.42 * size)
    figure, axes = _blank(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if size <= 30:
        axes.set_xticks(range(size), names, fontsize=8)
        axes.set_yticks(range(size), names, fontsize=8)
    if size <= 20:
        for i, row in enumerate(counts):
            for j, value in enumerate(row):
                color = "white" if shares[i][j] > 0.5 else (INK if value else "#c3c8cf")
                axes.text(j, i, str(value), ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted class", color=INK)
    axes.set_ylabel("true class", color=INK)
    right, total = sum(counts[i][i] for i in range(size)), sum(map(sum, counts))
    axes.set_title(f"{right} of {total} right", loc="left", color=INK, fontsize=12, fontweight="bold")
    return figure


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b6bcc4")
    axes.tick_params(colors=INK, labelsize=9, length=3)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
