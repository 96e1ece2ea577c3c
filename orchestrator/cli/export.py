"""`orchestrator export`: files of a run's trained model, each reloaded in a fresh process and compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.flags import Out, verb

if TYPE_CHECKING:
    from orchestrator.export.package import ExportOutcome


@verb(example="orchestrator export digits-cnn-1 --format onnx,safetensors")
@click.argument("run")
@click.option(
    "--format",
    "formats",
    default="program",
    show_default=True,
    help="Formats, separated by commas: safetensors, program, onnx.",
)
@click.option("--storage", default="runs", show_default=True, help="Folder that holds the runs.")
def command(out: Out, run: str, formats: str, storage: str) -> int:
    """Export the best checkpoint of RUN; what is there already and untouched is reused.

    A format that fails says why; the others are still made. Ends with 1 when any failed.
    """
    from orchestrator.export.finish import export_run
    from orchestrator.runs.catalog import find_run
    from orchestrator.spec.base import Use

    names = [name.strip() for name in formats.split(",") if name.strip()]
    outcomes = export_run(find_run(Path(storage), run), [Use(use=name) for name in names])
    failed = [outcome for outcome in outcomes if not outcome.ok]
    exports = [asdict(outcome) | {"ok": outcome.ok} for outcome in outcomes]
    out.result({"run": run, "exports": exports, "ok": not failed}, [_line(outcome) for outcome in outcomes])
    return 1 if failed else 0


def _line(outcome: ExportOutcome) -> str:
    if outcome.verified is None:
        hint = f"\n  {outcome.hint}" if outcome.hint else ""
        return f"{outcome.format}: failed: {outcome.error}{hint}"
    measured = f"max |difference| {outcome.verified.max_abs_diff:.2g} on {outcome.verified.samples} samples"
    return f"{outcome.format}: {outcome.path} ({measured}{', reused' if outcome.reused else ''})"
