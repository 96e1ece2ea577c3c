"""`orchestrator eval`: loss and metrics of a trained model, from whichever of its files is named."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.flags import Out, verb


@verb(example="orchestrator eval digits-cnn-1 --format onnx")
@click.argument("target")
@click.option("--split", default=None, help="Split to evaluate on (default: test, else val).")
@click.option("--format", "format_name", default="program", show_default=True, help="Which of a run's exports.")
@click.option("--storage", default="runs", show_default=True, help="Folder that holds the runs.")
def command(out: Out, target: str, split: str | None, format_name: str, storage: str) -> None:
    """Evaluate TARGET: a run's id or folder, an export folder or a checkpoint folder.

    Files are hashed before they are loaded; one that was altered is refused.
    """
    from orchestrator.export.target import evaluate_target, open_target

    opened = open_target(target, Path(storage), format_name)
    found = evaluate_target(opened, split)
    lines = [f"{opened.origin}: {found.samples} {found.split} samples in batches of {found.batch_size}"]
    width = max(len(name) for name in found.named())
    lines += [f"{name:<{width}}  {value:.6g}" for name, value in found.named().items()]
    payload = {"target": target, "origin": opened.origin, "split": found.split, "samples": found.samples}
    out.result(payload | {"batch_size": found.batch_size, "metrics": found.named()}, lines)
