"""The figures of a sweep as PNG files and its front as a page: history, front, coordinates, importance, budget.

Drawn by the sender from `sweep/summary.json`, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.runs.paths import RunDir
from orchestrator.tracking.figures import COLORS, INK, blank, save
from orchestrator.tracking.request import read_json
from orchestrator.tracking.sweep_page import front_page

QUIET = "#c3c8cf"
MOST_LINES = 400
MOST_LAYOUTS = 30


def draw_sweep(run: RunDir) -> Path | None:
    """Write the figures of a sweep to `artifacts/figures`; return the folder, None when there is nothing to draw."""
    page = read_json(run.sweep / "summary.json")
    done = [trial for trial in page.get("trials", []) if trial["state"] in ("finished", "stopped")]
    if not done:
        return None
    folder = run.artifacts / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    names = list(page["objectives"])
    save(history_figure(done, names, page["objectives"]), folder / "history.png")
    if len(names) > 1:
        save(front_figure(done, names), folder / "front.png")
    paths = list(dict.fromkeys(path for trial in done for path in trial["point"]))
    if len(done) > 1:
        save(parallel_figure(done, paths, names, page["objectives"]), folder / "parallel.png")
    if page.get("importance"):
        save(importance_figure(page["importance"]), folder / "importance.png")
    if page.get("layouts"):
        save(layouts_figure(page["layouts"]), folder / "layouts.png")
    if any(trial["state"] == "stopped" for trial in done):
        save(budget_figure(done), folder / "budget.png")
    (folder / "front.html").write_text(front_page(page), encoding="utf-8")
    return folder


def history_figure(done: Sequence[Mapping[str, Any]], names: Sequence[str], ways: Mapping[str, str]) -> Any:
    """Return one panel per objective: each trial's value, and the best so far."""
    figure, axes = blank(7.2, 2.6 * len(names) + 0.6, rows=len(names))
    for axis, name in zip(axes, names, strict=True):
        points = [(int(t["name"][1:]), t["values"][name], t["state"]) for t in done if name in t["values"]]
        better = min if ways[name] == "min" else max
        best = [better(value for _, value, _ in points[: n + 1]) for n in range(len(points))]
        colors = [COLORS["val"] if state == "finished" else QUIET for _, _, state in points]
        axis.scatter([x for x, _, _ in points], [y for _, y, _ in points], c=colors, s=22, zorder=3)
        axis.step([x for x, _, _ in points], best, where="post", color=COLORS["test"], lw=1.4, label="best so far")
        axis.set_title(f"{name} ({ways[name]})", loc="left", color=INK, fontsize=11, fontweight="bold")
        axis.grid(axis="y", color="#e6e8eb", lw=0.8)
        axis.legend(frameon=False, fontsize=8)
    axes[-1].set_xlabel("trial (grey: ended early)", color=INK)
    return figure


def front_figure(done: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Return a panel for each pair of the first objective and another; trials on the front are named."""
    pairs = [(name, names[0]) for name in names[1:]]
    figure, axes = blank(6.4, 4.2 * len(pairs), rows=len(pairs))
    for axis, (x, y) in zip(axes, pairs, strict=True):
        whole = [trial for trial in done if x in trial["values"] and y in trial["values"]]
        front = sorted((t for t in whole if t["front"]), key=lambda t: t["values"][x])
        axis.scatter([t["values"][x] for t in whole], [t["values"][y] for t in whole], c=QUIET, s=26)
        style: dict[str, Any] = {"color": COLORS["val"], "lw": 1.2, "marker": "o", "markersize": 6}
        # With more than two objectives the front is no line in any one panel.
        axis.plot(
            [t["values"][x] for t in front], [t["values"][y] for t in front], **style, ls="-" if len(names) == 2 else ""
        )
        for trial in front[:30]:
            at = (trial["values"][x], trial["values"][y])
            axis.annotate(trial["name"], at, xytext=(4, -10), textcoords="offset points", fontsize=8, color=INK)
        values = [t["values"][x] for t in whole]
        if values and min(values) > 0 and max(values) / min(values) > 30:
            axis.set_xscale("log")
        axis.set_xlabel(x, color=INK)
        axis.set_ylabel(y, color=INK)
        axis.set_title("front (blue): nothing is better in everything", loc="left", color=INK, fontsize=11)
        axis.grid(color="#eef0f2", lw=0.8)
    return figure


def parallel_figure(
    done: Sequence[Mapping[str, Any]], paths: Sequence[str], names: Sequence[str], ways: Mapping[str, str]
) -> Any:
    """Return parallel coordinates: an axis per parameter and objective, a line per trial, blue where on the front."""
    columns = [*paths, *names]
    figure, (axis,) = blank(max(6.0, 1.5 * len(columns)), 4.4)
    scales = [_scale([_cell(trial, column) for trial in done]) for column in columns]
    for trial in sorted(done, key=lambda each: each["front"])[-MOST_LINES:]:
        heights = [scale[0](_cell(trial, column)) for column, scale in zip(columns, scales, strict=True)]
        front = trial["front"]
        axis.plot(
            range(len(columns)), heights, color=COLORS["val"] if front else QUIET, lw=1.6 if front else 0.8, alpha=0.9
        )
    for index, (_, ticks) in enumerate(scales):
        axis.axvline(index, color="#b6bcc4", lw=0.8)
        for height, text in ticks:
            axis.text(index + 0.03, height, text, fontsize=7, color=INK, va="center")
    labels = [f"{column}\n({ways[column]})" if column in ways else column for column in columns]
    axis.set_xticks(range(len(columns)), labels, fontsize=8)
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(columns) - 0.6)
    axis.set_title("trials over parameters and objectives (blue: front)", loc="left", color=INK, fontsize=11)
    return figure


def importance_figure(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return bars per objective; the title says how far the forest can be trusted."""
    figure, axes = blank(6.4, 2.4 * len(found) + 0.4, rows=len(found))
    for axis, (name, content) in zip(axes, found.items(), strict=True):
        shares = sorted(content["shares"].items(), key=lambda item: item[1])
        axis.barh([path for path, _ in shares], [share for _, share in shares], color=COLORS["val"], height=0.6)
        r2 = content["r2"]
        trust = f"forest explains {100 * max(0.0, r2):.0f} % (out of bag)" + (
            "; too little to trust" if r2 < 0.2 else ""
        )
        axis.set_title(f"{name}: {trust}", loc="left", color=INK, fontsize=10)
        axis.set_xlim(0, 1)
    return figure


def layouts_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a bar per layout, seconds a step as measured, the fastest on top; a line in it where it was predicted."""
    shown = list(reversed(rows[:MOST_LAYOUTS]))
    figure, (axis,) = blank(7.2, 0.42 * len(shown) + 1.2)
    places = range(len(shown))
    axis.barh(places, [1000 * row["measured_s"] for row in shown], color=COLORS["val"], height=0.6, label="measured")
    predicted = [1000 * row["predicted_s"] for row in shown]
    axis.scatter(predicted, places, marker="|", s=220, color=COLORS["test"], lw=2.2, zorder=3, label="predicted")
    axis.set_yticks(places, [f"{row['layout']} ({row['trial']})" for row in shown], fontsize=8)
    axis.set_xlabel("milliseconds a step", color=INK)
    title = "layouts (predicted: work shared out, pipelines' bubbles, no communication)"
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return figure


def budget_figure(done: Sequence[Mapping[str, Any]]) -> Any:
    """Return how many trials got how far, in evaluations: the rungs of the scheduler are the steps of the stair."""
    figure, (axis,) = blank(6.4, 3.2)
    longest = max(trial["evaluations"] for trial in done)
    counts = [sum(trial["evaluations"] >= n for trial in done) for n in range(1, longest + 1)]
    axis.bar(range(1, longest + 1), counts, color=COLORS["val"], width=0.8)
    axis.set_xlabel("evaluation", color=INK)
    axis.set_ylabel("trials that got so far", color=INK)
    axis.set_title("budget per rung", loc="left", color=INK, fontsize=11, fontweight="bold")
    return figure


def _cell(trial: Mapping[str, Any], column: str) -> Any:
    return trial["values"].get(column) if column in trial["values"] else trial["point"].get(column)


def _scale(cells: Sequence[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """Return a function from a value to its height in [0, 1], and the ticks; what is absent lies below the axis."""
    numbers = [float(cell) for cell in cells if isinstance(cell, int | float) and not isinstance(cell, bool)]
    present = [cell for cell in cells if cell is not None]
    if numbers and len(numbers) == len(present):
        low, high = min(numbers), max(numbers)
        log = low > 0 and high / low > 30
        bend = math.log if log else float
        span = (bend(high) - bend(low)) or 1.0
        ticks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if high > low else [(0.0, f"{low:.3g}")]
        return (lambda cell: -0.08 if cell is None else (bend(cell) - bend(low)) / span), ticks
    words = sorted({str(cell) for cell in present})
    places = {word: index / max(1, len(words) - 1) for index, word in enumerate(words)}
    ticks = [(height, word[:18]) for word, height in places.items()]
    return (lambda cell: -0.08 if cell is None else places[str(cell)]), ticks
