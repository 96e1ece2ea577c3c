"""`orchestrator sweep --dry-run`: the space, and the first points with what planning says of them. Starts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.flags import Out

if TYPE_CHECKING:
    from orchestrator.spec.load import LoadedJob

SHOWN = 8


def preview(out: Out, job: str, loaded: LoadedJob) -> int:
    """Print the space and some points of a random draw, feasible or not and why."""
    from orchestrator.plan.available import Available
    from orchestrator.sweep.check import build_space
    from orchestrator.sweep.feasible import Feasible, Limits, judge_point
    from orchestrator.sweep.generations import trials_of
    from orchestrator.sweep.objectives import objectives_of
    from orchestrator.sweep.point import point_name
    from orchestrator.sweep.search import Random, SearchTask

    spec, section = loaded.spec, loaded.spec.sweep
    if section is None:
        return 0
    space, objectives = build_space(spec), objectives_of(spec)
    here = Available.local() if spec.cluster.address is None else Available.unknown()
    size, total = space.size(), trials_of(loaded.data, spec, space, Limits(here))
    rows: list[tuple[str, str]] = [(param.path, _words(param)) for param in space.params]
    rows.append(("points", f"{size:,}" if size is not None else "no end"))
    rows.append(("objectives", ", ".join(f"{each.name} {each.direction}" for each in objectives)))
    rows.append(("search", f"{section.search.use}, {section.scheduler.use}, {total or 'no limit of'} trials"))
    searcher = Random(SearchTask(space, objectives, section.seed))
    points: list[dict[str, Any]] = []
    for _ in range(SHOWN):
        point = searcher.ask()
        judged = judge_point(loaded.data, point, section.constraints, Limits(here))
        fits = isinstance(judged, Feasible)
        reason = judged.plan.layout.describe() if isinstance(judged, Feasible) else f"infeasible: {judged.reason}"
        points.append({"point": dict(point), "feasible": fits, "reason": reason})
        rows.append(("for example", f"{point_name(point)}  ({reason})"))
    width = max(len(title) for title, _ in rows)
    lines = [f"{click.style(f'{title:<{width}}', bold=True)}  {text}" for title, text in rows]
    out.result(
        {"job": job, "space": {p.path: _words(p) for p in space.params}, "size": size, "examples": points}, lines
    )
    return 0


def _words(param: Any) -> str:
    return str(param.describe()) + (f", when {param.when.text}" if param.when is not None else "")
