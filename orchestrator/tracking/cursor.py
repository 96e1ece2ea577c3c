"""`Cursor`: how far the spool has been shipped, kept in `spool/cursor.json` so that a killed sender doubles nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolReader
from orchestrator.tracking.request import read_json, replace_json


@dataclass
class Cursor:
    """Byte offset of each spool file, newest step of each metric key, and what was done once for the whole run.

    `high_water` makes steps that are repeated after a resume invisible to MLflow: the first value sent stands. `closed`
    says that MLflow has the run's final status.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    high_water: dict[str, tuple[int, str]] = field(default_factory=dict)
    request_sent: str = ""
    closed: bool = False
    rejected: int = 0
    shipped: int = 0

    def is_repeat(self, key: str, step: int, writer: str) -> bool:
        """Say whether this step was already sent by an earlier writer (or comes out of order from this one)."""
        newest, by = self.high_water.get(key, (-1, ""))
        return step < newest or (step == newest and by != writer)

    def advance(self, key: str, step: int, writer: str) -> None:
        """Note that the point was sent."""
        self.high_water[key] = (step, writer)


def cursor_path(run: RunDir) -> Path:
    """Return the cursor's file."""
    return run.spool / "cursor.json"


def load_cursor(run: RunDir) -> Cursor:
    """Return the saved cursor, or a fresh one."""
    value = read_json(cursor_path(run))
    cursor = Cursor(**{key: value[key] for key in Cursor.__dataclass_fields__ if key in value})
    cursor.high_water = {key: (int(pair[0]), str(pair[1])) for key, pair in cursor.high_water.items()}
    return cursor


def save_cursor(run: RunDir, cursor: Cursor) -> None:
    """Replace the saved cursor durably."""
    replace_json(cursor_path(run), asdict(cursor))


def spool_files(run: RunDir) -> list[Path]:
    """Return the spool files in the order in which they are shipped: driver first, then by attempt."""
    found = [path for path in run.spool.glob("*.jsonl") if path.name != "rejected.jsonl"]
    return sorted(
        found, key=lambda path: (path.stem != "driver", _attempt(path.stem), path.stem.startswith("finish"), path.stem)
    )


def _attempt(stem: str) -> int:
    number = stem.rpartition("-a")[2]
    return int(number) if number.isdigit() else 0


def tracked_below(run: RunDir) -> list[RunDir]:
    """Return the trials of a sweep and the stages of a trial that have a run of their own in MLflow, at any depth."""
    found: list[RunDir] = []
    for folder in (run.trials, run.stages):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path / "tracking.json").is_file():
                found += [RunDir(path), *tracked_below(RunDir(path))]
    return found


def is_closed(run: RunDir) -> bool:
    """Say whether MLflow has the final status of the run, and of every run below it when it is a sweep."""
    return all(load_cursor(each).closed for each in (run, *tracked_below(run)))


def count_remaining(run: RunDir) -> int:
    """Return the number of complete records that have not been shipped, those of the runs below it included."""
    return sum(remaining_of(each) for each in (run, *tracked_below(run)))


def remaining_of(run: RunDir) -> int:
    """Return the number of complete records of this run alone that have not been shipped."""
    cursor, total = load_cursor(run), 0
    for path in spool_files(run):
        offset = cursor.offsets.get(path.stem, 0)
        while True:
            lines, end = SpoolReader(path).read(offset)
            if not lines:
                break
            total, offset = total + len(lines), end
    return total
