"""`experts.png`: where a mixture's tokens went: a heat map a layer, experts upwards, optimiser steps to the right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Loads = dict[str, dict[int, list[float]]]
"""By layer and step: every expert's tokens over the fair share."""

INK = "#24292f"
MAX_LAYERS = 12
FULLEST = 2.0


def read_loads(records: Iterable[Mapping[str, Any]]) -> Loads:
    """Return the loads by layer and step from the spool's records; a step repeated after a resume counts once."""
    found: Loads = {}
    for record in records:
        for layer, loads in record.get("loads", {}).items():
            found.setdefault(layer, {}).setdefault(int(record["step"]), [float(load) for load in loads])
    return {layer: dict(sorted(steps.items())) for layer, steps in found.items()}


def experts_figure(loads: Loads, series: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Return the figure; with more layers than `MAX_LAYERS` an even choice of them, which the title says.

    `series` holds the run's metrics: the newest drop rate and router entropy stand over each layer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = _choose(list(loads))
    columns = min(4, ceil(sqrt(len(layers))))
    rows = ceil(len(layers) / columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.8 + 2.4 * rows), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    for axes, layer in zip(grid.flat, layers, strict=False):
        image = _draw_layer(axes, loads[layer])
        axes.set_title(_title(layer, series), loc="left", color=INK, fontsize=8)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=grid, shrink=0.8, extend="max")
    bar.set_label("tokens over the fair share (white: fair)", fontsize=8, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=7)
    of = f", {len(layers)} of {len(loads)} layers" if len(layers) < len(loads) else ""
    figure.suptitle(f"load of each expert{of}", x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    return figure


def _draw_layer(axes: Any, steps: Mapping[int, Sequence[float]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    at, columns = list(steps), list(steps.values())
    experts = len(columns[0])
    edges = [at[0] - (at[1] - at[0] if len(at) > 1 else 1), *at]
    cells = [[column[expert] for column in columns] for expert in range(experts)]
    image = axes.pcolormesh(
        edges, [each - 0.5 for each in range(experts + 1)], cells, cmap="RdBu_r", vmin=0, vmax=FULLEST
    )
    axes.set_xlabel("optimiser step", fontsize=8, color=INK)
    axes.set_ylabel("expert", fontsize=8, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.tick_params(colors=INK, labelsize=7, length=3)
    return image


def _title(layer: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    words = [layer]
    for name, said in (
        ("drop_rate", "dropped {:.1%}"),
        ("router_entropy", "entropy {:.2f}"),
        ("max_load", "max {:.2f}"),
    ):
        points = series.get(f"moe/{layer}/{name}")
        if points:
            words.append(said.format(points[-1][1]))
    return "  ".join(words)


def _choose(layers: list[str]) -> list[str]:
    if len(layers) <= MAX_LAYERS:
        return layers
    return [layers[round(number * (len(layers) - 1) / (MAX_LAYERS - 1))] for number in range(MAX_LAYERS)]
