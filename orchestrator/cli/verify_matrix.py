"""`orchestrator verify --matrix`: runs the matrix, shows it, and writes it as a page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.flags import Out

if TYPE_CHECKING:
    from orchestrator.verify.matrix import Cell


def show_matrix(
    out: Out, ranks: list[int], models: str, steps: int, output: Path | None, cells_file: Path | None
) -> int:
    """Run every cell of the chosen models on these numbers of ranks; return 1 when any disagrees.

    Cells that `cells_file` holds are not run again.
    """
    from datetime import UTC, datetime

    from orchestrator.verify.matrix import missing_models, run_spots, spots
    from orchestrator.verify.matrix_kept import KeptCells
    from orchestrator.verify.matrix_page import page

    rows = _rows(models)
    for name in missing_models():
        out.note(f"model {name} is registered, but there is no small job for it here: give `verify` a job of yours")
    among = spots(rows, ranks)
    fitting = sum(1 for spot in among if spot.candidate is not None)
    today = datetime.now(UTC).date().isoformat()
    kept = KeptCells(cells_file, steps, today) if cells_file is not None else None
    left = kept.missing(among) if kept is not None else among
    seen = [1] * (fitting - sum(1 for spot in left if spot.candidate is not None))
    there = f"; {len(seen)} of them are in {cells_file} already" if seen else ""
    out.say(f"{len(among)} cells, of which {fitting} fit and are run{there}", err=True)

    def tell(cell: Cell) -> None:
        seen.append(1)
        out.say(f"  {len(seen)}/{fitting}  {_line(cell)}", err=True)
        if kept is not None:
            kept.add(cell)

    cells = run_spots(left, steps, tell)
    if kept is not None:
        mine = dict.fromkeys(kept.of(among))
        cells = [*mine, *(cell for cell in cells if cell not in mine)]
    text = page(
        cells,
        command=shlex.join(["orchestrator", *sys.argv[1:]]),
        date=today if kept is None or kept.begun == today else f"{kept.begun} to {today}",
        machine=_machine(),
        num_steps=steps,
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    wrong = [cell for cell in cells if not cell.agrees]
    verdict = f"{len(wrong)} of {fitting} cells disagree" if wrong else f"all {fitting} cells agree"
    lines = [verdict if output is None else f"{verdict}; wrote {output}"]
    out.result(
        {"ok": not wrong, "agrees": not wrong, "cells": [cell.as_dict() for cell in cells]},
        [text, *lines] if output is None and not out.quiet else lines,
    )
    return 1 if wrong else 0


def _rows(models: str) -> list[str]:
    from orchestrator.errors import JobFileError
    from orchestrator.verify.matrix_models import matrix_jobs

    jobs = matrix_jobs()
    wanted = [part.strip() for part in models.split(",") if part.strip()]
    unknown = [name for name in wanted if name not in {job.model.use for job in jobs.values()}]
    if unknown:
        known = ", ".join(dict.fromkeys(job.model.use for job in jobs.values()))
        raise JobFileError(f"the matrix has no model '{unknown[0]}'", hint=f"it has: {known}")
    return [name for name, job in jobs.items() if not wanted or job.model.use in wanted]


def _line(cell: Cell) -> str:
    what = cell.error or (f"{cell.difference:.1e}" if cell.difference is not None else f"- {cell.unsupported}")
    sign = "ok  " if cell.agrees else "FAIL"
    return f"{sign} {cell.model}: {cell.layout} {cell.schedule} {what}"


def _machine() -> str:
    from importlib.metadata import version
    from platform import machine

    from orchestrator.plan.available import Available

    return f"{machine()}, {Available.local().num_cpus:g} cores, torch {version('torch')}"
