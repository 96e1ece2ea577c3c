"""`orchestrator clean`: delete runs that are not live, after saying which and how much that frees."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.flags import Out, verb


@verb(example="orchestrator clean --keep 5 --dry-run")
@click.argument("run_ids", metavar="[RUN]...", nargs=-1)
@click.option("--keep", type=click.IntRange(min=0), help="Keep so many of the newest runs.")
@click.option("--older", type=click.FloatRange(min=0), metavar="DAYS", help="Only runs that ended longer ago.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--storage", default="runs", show_default=True, help="Folder that holds the runs.")
def command(
    out: Out, run_ids: tuple[str, ...], keep: int | None, older: float | None, yes: bool, dry_run: bool, storage: str
) -> int:
    """Delete runs: those named, or all but the newest (--keep), or old ones (--older). Never a live one.

    What MLflow holds (metrics, registered models) stays.
    """
    from orchestrator.cli.runs import size
    from orchestrator.runs.catalog import delete_run, describe_run, find_run, list_runs, refuse_live, select_runs

    if not run_ids and keep is None and older is None:
        raise click.UsageError("say which: RUN..., --keep N or --older DAYS")
    folder = Path(storage)
    if run_ids:
        chosen = [describe_run(find_run(folder, run_id)) for run_id in dict.fromkeys(run_ids)]
        refuse_live(chosen)  # before any is deleted
    else:
        chosen = select_runs(list_runs(folder), keep=keep, older_days=older)
    total = sum(info.size_bytes for info in chosen)
    names = [info.run.run_id for info in chosen]
    payload = {"runs": names, "bytes": total, "deleted": False}
    listing = [f"{info.run.run_id}  {info.state}  {size(info.size_bytes)}" for info in chosen]
    if dry_run or not chosen:
        out.result(payload, [*listing, f"would free {size(total)}" if chosen else "nothing to delete"])
        return 0
    for line in listing:
        out.say(line, err=True)
    if not yes:
        click.confirm(
            f"Delete {len(chosen)} run{'s' if len(chosen) > 1 else ''} and free {size(total)}?", abort=True, err=True
        )
    freed = sum(delete_run(info.run) for info in chosen)
    out.result(payload | {"deleted": True, "bytes": freed}, [f"deleted {', '.join(names)}: {size(freed)} freed"])
    return 0
