"""`Pump`: moves what stands in the spool to MLflow, one round at a time, and keeps the cursor. Sender process only."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.log import get_logger, redact
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolLine, SpoolReader
from orchestrator.tracking.busy import busy
from orchestrator.tracking.cursor import load_cursor, save_cursor, spool_files
from orchestrator.tracking.request import TrackingRequest
from orchestrator.tracking.ship import Point, RecordError, RunGoneError, Shipper

MAX_POINTS = 1000
MIN_POINTS = 50
MAX_TRIES = 30
_log = get_logger("tracking")


@dataclass
class _Batch:
    points: list[Point] = field(default_factory=list)
    records: int = 0
    end: int = -1


class Pump:
    """Ships complete records in order, file by file. Exceptions that leave `round` mean "the store is out of reach"."""

    def __init__(self, run: RunDir, shipper: Shipper, after_bytes: int) -> None:
        self.run = run
        self.shipper = shipper
        self.cursor = load_cursor(run)
        self.final: dict[str, Any] | None = None
        self.is_failing = False
        self._after_bytes = after_bytes
        self._max_points = MAX_POINTS
        self._tries: dict[tuple[str, int], int] = {}

    def round(self) -> int:
        """Ship one portion of every file; return the number of records dealt with (0: nothing is left for now)."""
        self.final = None
        return sum(self._ship_file(path) for path in spool_files(self.run))

    def send_own(self, record: dict[str, Any]) -> None:
        """Send a record that is not from the spool (the request's tags and params); a refused one is set aside."""
        try:
            self.shipper.send(record)
        except RecordError as error:
            self._set_aside("request", json.dumps({"kind": record["kind"]}), str(error))

    def finish(self) -> None:
        """Set the terminal status that the driver asked for, then step over its record."""
        final = self.final or {}
        try:
            self.shipper.finish(str(final.get("status")), int(final.get("time_ms", 0)))
        except RecordError as error:
            self._set_aside("driver", json.dumps(final), str(error))
        self.cursor.closed = True
        self._advance("driver", self.cursor.offsets.get("driver", 0) + int(final.get("_bytes", 0)), 1)

    def note_closed(self, closed: bool) -> None:
        """Remember whether MLflow has the run's final status."""
        if self.cursor.closed != closed:
            self.cursor.closed = closed
            save_cursor(self.run, self.cursor)

    def _ship_file(self, path: Path) -> int:
        writer = path.stem
        start = self.cursor.offsets.get(writer, 0)
        lines, end = SpoolReader(path).read(start)
        if not lines:
            return 0
        batch, done = _Batch(), 0
        for line in lines:
            record = line.record
            if record is not None and record.get("kind") == "metrics":
                self._collect(batch, line, record, writer)
                if len(batch.points) < self._max_points:
                    continue
            done += self._flush(batch, writer)
            batch = _Batch()
            if record is None or record.get("kind") != "metrics":
                if self._holds_status(path, line, end):
                    return done
                self._send(writer, line)
                done += 1
        return done + self._flush(batch, writer)

    def _collect(self, batch: _Batch, line: SpoolLine, record: dict[str, Any], writer: str) -> None:
        try:
            step, time_ms = int(record["step"]), int(record["time_ms"])
            points = [Point(str(key), float(value), step, time_ms) for key, value in record["values"].items()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._set_aside(writer, line.raw, f"not a metrics record: {error}")
            points = []
        batch.points += [p for p in points if _is_timed(p.key) or not self.cursor.is_repeat(p.key, p.step, writer)]
        batch.records += 1
        batch.end = line.end

    def _flush(self, batch: _Batch, writer: str) -> int:
        if not batch.records:
            return 0
        try:
            for start in range(0, len(batch.points), MAX_POINTS):
                self.shipper.send_metrics(batch.points[start : start + MAX_POINTS], self._set_aside_point)
        except Exception:
            # A slow server may need longer than the time limit for a large request, so the next one is smaller.
            self._max_points = max(MIN_POINTS, self._max_points // 2)
            raise
        self._max_points = min(MAX_POINTS, self._max_points * 2)
        for point in batch.points:
            if not _is_timed(point.key):
                self.cursor.advance(point.key, point.step, writer)
        self._advance(writer, batch.end, batch.records)
        return batch.records

    def _send(self, writer: str, line: SpoolLine) -> None:
        place = (writer, line.start)
        try:
            if line.record is None:
                raise RecordError("not a JSON object")
            if line.record.get("kind") != "status":
                with busy(self.run, counts=not self.is_failing):
                    self.shipper.send(line.record)
        except RecordError as error:
            self._set_aside(writer, line.raw, str(error))
        except RunGoneError:
            raise
        except Exception as error:
            # mlflow's edge. A record that fails again and again while the store answers must not block the others.
            self._tries[place] = self._tries.get(place, 0) + 1
            if self._tries[place] < MAX_TRIES:
                raise
            self.shipper.client.get_run(self.shipper.run_id)
            self._set_aside(writer, line.raw, f"{MAX_TRIES} tries failed: {error}")
        self._advance(writer, line.end, 1)

    def _holds_status(self, path: Path, line: SpoolLine, end: int) -> bool:
        """Keep the driver's last word back until all else is shipped; an earlier start's last word is skipped."""
        record = line.record
        if record is None or record.get("kind") != "status" or path.stem != "driver":
            return False
        if line.start < self._after_bytes or line.end != end or path.stat().st_size > end:
            return False
        self.final = {**record, "_bytes": line.end - line.start}
        return True

    def _advance(self, writer: str, offset: int, records: int) -> None:
        self.is_failing = False
        self.cursor.offsets[writer] = offset
        self.cursor.shipped += records
        save_cursor(self.run, self.cursor)

    def _set_aside_point(self, point: Point, reason: str) -> None:
        value = point.value if math.isfinite(point.value) else str(point.value)
        self._set_aside("metric", json.dumps({"key": point.key, "value": value, "step": point.step}), reason)

    def _set_aside(self, writer: str, raw: str, reason: str) -> None:
        _log.error("set aside a record of %s: %s", writer, redact(reason))
        self.cursor.rejected += 1
        line = json.dumps({"writer": writer, "reason": redact(reason), "record": redact(raw)}) + "\n"
        with open(self.run.spool / "rejected.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _is_timed(key: str) -> bool:
    """Say whether points of this key are told apart by time, not by step (several samples may fall into one step)."""
    return key.startswith("system/")


def send_request(pump: Pump, request: TrackingRequest) -> None:
    """Send params, tags and description of the request, once for each request."""
    digest = hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()[:16]
    if pump.cursor.request_sent == digest:
        return
    note = {"mlflow.note.content": request.description} if request.description else {}
    pump.send_own({"kind": "tags", "values": {**request.tags, **note}})
    pump.send_own({"kind": "params", "values": dict(request.params)})
    pump.cursor.request_sent = digest
