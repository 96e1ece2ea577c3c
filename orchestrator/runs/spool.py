"""The spool: append-only JSON lines that rank 0, the driver and the finish stage leave for the tracking sender.

Writing never raises, never waits for a server and costs some ten microseconds. Standard library only.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.log import get_logger

SYNC_EVERY_S = 1.0
_log = get_logger("spool")


class SpoolWriter:
    """Appends records to one file; `<run>/spool/<writer>.jsonl` has one writer at a time.

    Implements `train.ports.Recorder`. Each record is one `write` to the file at once; a helper thread makes them
    durable (fsync) at most once a second, `close` at the end. What cannot be written (disk full) is counted in `lost`.
    """

    def __init__(self, path: Path) -> None:
        """Open or create `path`; a torn last line (a writer killed mid-write) is cut off. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lost = 0
        self._seq = _mend(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        _sync_folder(path.parent)
        self._torn = False
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sync_loop, name=f"spool-{path.stem}", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values at an optimiser step."""
        try:
            numbers = {key: float(value) for key, value in values.items()}
        except (TypeError, ValueError) as error:
            self._lose(f"metrics at step {step} are not numbers: {error}")
            return
        self.record("metrics", step=int(step), values=numbers)

    def record(self, kind: str, **payload: Any) -> None:
        """Append one record of `kind`; values that JSON does not know are written as text."""
        with self._lock:
            if self._closed.is_set():
                self._lose(f"{kind} after close")
                return
            head = {"seq": self._seq + 1, "time_ms": time.time_ns() // 1_000_000, "kind": kind}
            line = json.dumps(head | payload, separators=(",", ":"), default=str).encode() + b"\n"
            if self._append(line):
                self._seq += 1
        self._dirty.set()

    def close(self) -> None:
        """Make everything durable and end the helper thread; calling it again does nothing."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        self._dirty.set()
        self._thread.join()
        self._sync()
        os.close(self._fd)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, line: bytes) -> bool:
        # After a failed or partial write the next line starts on a new one, so that only the torn record is lost.
        data = b"\n" + line if self._torn else line
        try:
            self._torn = os.write(self._fd, data) != len(data)
        except OSError as error:
            self._torn = True
            self._lose(str(error))
            return False
        if self._torn:
            self._lose("the disk took only a part of it")
        return not self._torn

    def _lose(self, why: str) -> None:
        self.lost += 1
        if self.lost == 1:
            _log.error("a record for %s is lost: %s (further losses are only counted)", self.path, why)

    def _sync_loop(self) -> None:
        while not self._closed.is_set():
            self._dirty.wait()
            self._dirty.clear()
            self._sync()
            self._closed.wait(SYNC_EVERY_S)

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            _log.error("cannot make %s durable: %s", self.path, error)


def _mend(path: Path) -> int:
    """Cut a torn last line off an existing file; return the last sequence number in it (0: none)."""
    if not path.exists():
        return 0
    lines, end = SpoolReader(path).read(0, limit_bytes=path.stat().st_size + 1)
    if end < path.stat().st_size:
        os.truncate(path, end)
    return max((int(line.record.get("seq", 0)) for line in lines if line.record is not None), default=0)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class SpoolLine:
    """One complete line. `start` and `end` are byte offsets; `record` is None when the line is not a JSON object."""

    start: int
    end: int
    record: dict[str, Any] | None
    raw: str


class SpoolReader:
    """Reads complete lines of one spool file from a byte offset; a last line without its newline is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, offset: int, limit_bytes: int = 1 << 20) -> tuple[list[SpoolLine], int]:
        """Return the lines from byte `offset` on, about `limit_bytes` of them, and the offset after the last."""
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                block = file.read(limit_bytes)
                if block and b"\n" not in block:
                    block += file.readline()  # one line longer than the limit
        except FileNotFoundError:
            return [], offset
        lines: list[SpoolLine] = []
        for part in block[: block.rfind(b"\n") + 1].splitlines(keepends=True):
            lines.append(_parse(part, offset))
            offset += len(part)
        return lines, offset


def _parse(part: bytes, start: int) -> SpoolLine:
    raw = part.decode("utf-8", errors="replace").strip()
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    return SpoolLine(start, start + len(part), value if isinstance(value, dict) else None, raw)
