"""Numbers of runs: counted up per job name in a storage folder, never given twice, also after a run was deleted."""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path

from orchestrator.runs.record import write_json

NUMBERS, LOCK = ".numbers.json", ".numbers.lock"


def claim_folder(storage: Path, name: str) -> Path:
    """Make and return the folder `<storage>/<name>-<n>` with the next number. Raises OSError."""
    with open(storage / LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        given = _given(storage)
        # Folders count too: the file may be lost, or older than a folder that was copied here.
        number = 1 + max([given.get(name, 0), *(_number(path.name, name) for path in storage.iterdir())])
        folder = storage / f"{name}-{number}"
        write_json(storage / NUMBERS, given | {name: number})
        folder.mkdir()
    return folder


def _given(storage: Path) -> dict[str, int]:
    try:
        content = json.loads((storage / NUMBERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: number for name, number in content.items() if isinstance(number, int)}


def _number(folder: str, name: str) -> int:
    found = re.fullmatch(re.escape(name) + r"-(\d{1,9})", folder)
    return int(found[1]) if found else 0
