"""Follows what rank 0 has recorded, for the progress line; reads only what is new."""

from __future__ import annotations

import json
from collections.abc import Callable

from orchestrator.cluster.events import Event
from orchestrator.runs.paths import RunDir


class SpoolTail:
    """Turns new metric records of the newest attempt into events."""

    def __init__(self, run: RunDir, on_event: Callable[[Event], None]) -> None:
        self._run = run
        self._on_event = on_event
        self._offsets: dict[str, int] = {}
        self.latest: dict[str, float] = {}

    def skip(self) -> None:
        """Leave out what is there already (a resumed run)."""
        for path in self._run.spool.glob("rank0-a*.jsonl"):
            self._offsets[path.name] = path.stat().st_size

    def poll(self) -> None:
        """Tell what is new since the last call."""
        for path in sorted(self._run.spool.glob("rank0-a*.jsonl")):
            offset = self._offsets.get(path.name, 0)
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    text = file.read()
            except OSError:
                continue
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[path.name] = offset + len(whole)
            for line in whole.splitlines():
                self._tell(line)

    def _tell(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if record.get("kind") == "metrics":
            values = record.get("values", {})
            self.latest.update(values)
            self._on_event(Event("metrics", "", {"step": record.get("step", 0), "values": values}))
