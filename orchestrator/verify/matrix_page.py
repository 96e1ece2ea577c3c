"""The matrix as a Markdown page: a table of layouts by models for each number of ranks, one of schedules, reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.verify.matrix import GATE, Cell


def page(cells: Sequence[Cell], *, command: str, date: str, machine: str, num_steps: int) -> str:
    """Return the whole page."""
    return "\n".join(_lines(cells, command, date, machine, num_steps)) + "\n"


def _lines(cells: Sequence[Cell], command: str, date: str, machine: str, num_steps: int) -> Iterator[str]:
    ran = [cell for cell in cells if cell.difference is not None]
    wrong = [cell for cell in cells if not cell.agrees]
    models = list(dict.fromkeys(cell.model for cell in cells))
    yield "# The matrix: every model under every layout"
    yield ""
    yield f"Measured by `{command}` on {date} ({machine}). Written by that command; do not edit."
    yield ""
    yield (
        f"A cell is a small model trained for {num_steps} steps under a layout on CPU processes (gloo, float64) and "
        "on one process. The number is the largest relative difference over all losses, gradients, gradient norms "
        f"before and after clipping, updated weights and buffers; the gate is {GATE:g}. How and why: "
        "[verify.md](verify.md)."
    )
    yield ""
    yield (
        f"{len(cells)} cells: {len(ran)} ran, {len(wrong)} disagree, {len(cells) - len(ran) - _errors(cells)} are not "
        "supported (the reasons are below)."
        + (f" Largest difference: {max(cell.difference or 0 for cell in ran):.1e}." if ran else "")
    )
    reasons = list(dict.fromkeys(cell.unsupported for cell in cells if cell.unsupported))
    for ranks in sorted({cell.ranks for cell in cells}):
        mine = [cell for cell in cells if cell.ranks == ranks]
        yield from ["", f"## {ranks} ranks", ""]
        yield "Under a pipeline the worst over the schedules that fit, and how many of the seven those are."
        yield ""
        yield from _table("layout", models, [(each, _of(mine, layout=each)) for each in _names(mine)], reasons)
    yield from ["", "## Schedules", "", "The worst over all layouts with a pipeline.", ""]
    schedules = list(dict.fromkeys(cell.schedule for cell in cells if cell.schedule))
    rows = [(each, [cell for cell in cells if cell.schedule == each]) for each in schedules]
    yield from _table("schedule", models, rows, reasons)
    yield from _endings(wrong, reasons)


def _endings(wrong: Sequence[Cell], reasons: Sequence[str]) -> Iterator[str]:
    if wrong:
        yield from ["", "## What disagrees", ""]
        for cell in wrong:
            what = cell.error or f"{cell.difference:.1e} in {cell.name}"
            where = " ".join(filter(None, [cell.layout, cell.schedule]))
            yield f"- {cell.model}, {where}: {what}"
    yield from ["", "## Why cells are not supported", ""]
    yield from (f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))


def _table(
    head: str, models: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], reasons: Sequence[str]
) -> Iterator[str]:
    yield f"| {head} | {' | '.join(models)} |"
    yield "|---" * (len(models) + 1) + "|"
    for name, cells in rows:
        texts = [_text([cell for cell in cells if cell.model == model], reasons) for model in models]
        yield f"| {name} | {' | '.join(texts)} |"


def _text(cells: Sequence[Cell], reasons: Sequence[str]) -> str:
    if not cells:
        return ""
    ran = [cell.difference for cell in cells if cell.difference is not None]
    if any(not cell.agrees for cell in cells):
        return f"**{max(ran):.0e}**" if ran else "**failed**"
    notes = sorted({reasons.index(cell.unsupported) + 1 for cell in cells if cell.unsupported})
    if not ran:
        return "- (" + ", ".join(map(str, notes[:2])) + ")"
    share = f" ({len(ran)} of {len(cells)})" if len(cells) > 1 and len(ran) < len(cells) else ""
    return f"{max(ran):.0e}{share}"


def _names(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.layout for cell in cells))


def _of(cells: Sequence[Cell], layout: str) -> list[Cell]:
    return [cell for cell in cells if cell.layout == layout]


def _errors(cells: Sequence[Cell]) -> int:
    return sum(1 for cell in cells if cell.error)
