"""Comparisons as lines of text: all groups of one layout, or a line per layout. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.verify.compare import Comparison, Worst

_COLUMNS = ("loss", "gradients", "gradient norm", "clipped norm", "weights", "buffers")


def lines_of_one(found: Comparison) -> Iterator[str]:
    """Yield one comparison in full: a line per group with its worst tensor, then what was found first."""
    yield f"{found.layout}  {found.precision}"
    for worst in found.groups:
        sign = "ok  " if worst.agrees else "FAIL"
        place = f"step {worst.step}" + (f"  {worst.name}" if worst.name else "")
        yield f"  {sign} {worst.group:<14} {worst.difference:8.1e}  of {worst.tolerance:5.0e}  {place}"
    yield from _trouble(found)


def table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a line per comparison: the worst difference of every group, and the tensor nearest its tolerance."""
    rows = [("", "layout", "", *_COLUMNS, "worst"), *map(_row, comparisons)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for number, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if number:
            yield from _trouble(comparisons[number - 1])


def _row(found: Comparison) -> tuple[str, ...]:
    by_group = {worst.group: f"{worst.difference:.1e}" for worst in found.groups}
    worst = found.worst
    name = "" if worst is None else worst.name or worst.group
    sign = "ok" if found.agrees else "FAIL"
    return (sign, found.layout, found.precision, *(by_group.get(group, "-") for group in _COLUMNS), name)


def _trouble(found: Comparison) -> Iterator[str]:
    if found.error:
        yield f"  it did not run: {found.error}"
    if found.first is None:
        return
    yield f"  first at step {found.first.step}: {_said(found.first)}"
    if found.first_tensor is not None and not found.first.name:
        yield f"  first parameter at step {found.first_tensor.step}: {_said(found.first_tensor)}"


def _said(finding: Worst) -> str:
    return f"{finding.group}{f' of {finding.name}' if finding.name else ''} differs by {finding.difference:.1e}"
