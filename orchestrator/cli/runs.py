"""`orchestrator runs`: list, show, compare and synchronise runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.flags import Out, verb

if TYPE_CHECKING:
    from orchestrator.runs.catalog import RunInfo


@verb(example="orchestrator runs compare digits-cnn-1 digits-cnn-2")
@click.argument("words", metavar="[show RUN | compare A B | sync [RUN]]", nargs=-1)
@click.option("--storage", default="runs", show_default=True, help="Folder that holds the runs.")
def command(out: Out, words: tuple[str, ...], storage: str) -> int:
    """List the runs in a storage folder: state, when, how good, how large.

    `show RUN` prints one, `compare A B` what differs between two, `sync [RUN]` ships what MLflow was not sent yet.
    """
    folder = Path(storage)
    match words:
        case ():
            _list(out, folder)
        case ("show",) | ("show", _):
            _show(out, folder, words[1] if len(words) > 1 else "latest")
        case ("compare", first, second):
            _compare(out, folder, first, second)
        case ("sync",) | ("sync", _):
            return _sync(out, folder, words[1] if len(words) > 1 else None)
        case _:
            raise click.UsageError("`runs` takes nothing, or show RUN, compare A B, sync [RUN]")
    return 0


def _list(out: Out, storage: Path) -> None:
    from orchestrator.runs.catalog import list_runs

    found = list_runs(storage)
    payload = {"storage": str(storage.resolve()), "runs": [_as_dict(info) for info in found]}
    total = sum(info.size_bytes for info in found)
    rows = [["run", "state", "created", "best", "size"]]
    for info in found:
        created = info.record.created[:16].replace("T", " ")
        rows.append([info.run.run_id, info.state, created, _headline(info.record.metrics), size(info.size_bytes)])
    lines = [*table(rows), f"{len(found)} runs, {size(total)} in {storage.resolve()}"]
    out.result(payload, lines if found else [f"no runs in {storage.resolve()}"])


def _show(out: Out, storage: Path, run_id: str) -> None:
    from orchestrator.runs.catalog import describe_run, find_run

    info = describe_run(find_run(storage, run_id))
    rows = [("run", info.run.run_id), ("state", info.state), ("verdict", info.record.verdict)]
    rows += [("created", info.record.created), ("ended", info.record.ended), ("attempts", str(info.record.attempt))]
    rows += [(name, f"{value:.6g}") for name, value in sorted(info.record.metrics.items())]
    if info.record.model_version:
        rows.append(("model", " version ".join(info.record.model_version.values())))
    rows += [("mlflow", info.record.mlflow.get("url", "")), ("size", size(info.size_bytes))]
    rows += [("folder", str(info.run.path)), ("command", info.record.command)]
    out.result(_as_dict(info), [f"{title:<14} {text}" for title, text in rows if text])


def _compare(out: Out, storage: Path, first: str, second: str) -> None:
    import json

    from orchestrator.cluster.facts import flatten
    from orchestrator.runs.catalog import describe_run, find_run

    infos = [describe_run(find_run(storage, run_id)) for run_id in (first, second)]
    jobs = [flatten(json.loads(info.run.job.read_text(encoding="utf-8"))) for info in infos]
    metrics = [dict(info.record.metrics) for info in infos]
    changed = {
        key: [job.get(key) for job in jobs]
        for key in sorted({*jobs[0], *jobs[1]})
        if jobs[0].get(key) != jobs[1].get(key)
    }
    measured = {key: [each.get(key) for each in metrics] for key in sorted({*metrics[0], *metrics[1]})}
    rows = [["", *(info.run.run_id for info in infos)], ["state", *(info.state for info in infos)]]
    rows += [[key, *(_text(value) for value in values)] for key, values in {**changed, **measured}.items()]
    payload = {"runs": [info.run.run_id for info in infos], "job": changed, "metrics": measured}
    out.result(payload, table(rows))


def _sync(out: Out, storage: Path, run_id: str | None) -> int:
    from orchestrator.errors import TrackingError
    from orchestrator.runs.catalog import find_run, list_runs
    from orchestrator.tracking.handle import sync

    if run_id:
        runs = [find_run(storage, run_id)]
    else:
        runs = [info.run for info in list_runs(storage, with_size=False) if not info.is_live]
    done: dict[str, Any] = {}
    lines = []
    for run in runs:
        try:
            counts = sync(run)
        except TrackingError as error:
            if run_id:
                raise
            lines.append(f"{run.run_id}: {error.message}")
            continue
        found = {"shipped": counts.shipped, "remaining": counts.remaining, "rejected": counts.rejected}
        done[run.run_id] = found | {"unsent": list(counts.unsent)}
        lines.append(f"{run.run_id}: {counts.shipped} shipped, {counts.remaining} remain")
        lines += [f"{run.run_id}: {line}" for line in counts.unsent]
    out.result({"runs": done}, lines or ["nothing to ship"])
    return 1 if any(counts["remaining"] or counts["unsent"] for counts in done.values()) else 0


def table(rows: list[list[str]]) -> list[str]:
    """Return rows as aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def _headline(metrics: Mapping[str, float]) -> str:
    for prefix in ("test/accuracy", "val/accuracy", "test/", "val/"):
        for name, value in sorted(metrics.items()):
            if name.startswith(prefix):
                return f"{name} {value:.4g}"
    return ""


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


def _as_dict(info: RunInfo) -> dict[str, Any]:
    return {**asdict(info.record), "state": info.state, "path": str(info.run.path), "size_bytes": info.size_bytes}
