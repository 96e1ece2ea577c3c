"""The ledger of a sweep: one JSON line per thing that happened to a trial, appended and made durable, never rewritten.

What it says is folded into `Trial`s. A killed sweep is resumed from it: ended trials are told to the searcher again and
not repeated, those under way are begun again as they were. `sweep/ledger.jsonl` is read by nobody else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from errno import ENOSPC
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.fork import Fork
from orchestrator.errors import CheckpointError
from orchestrator.runs.record import now_iso
from orchestrator.sweep.birth import Birth
from orchestrator.sweep.point import Point, point_hash
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.within import as_found, as_kept


class Ledger:
    """Appends to and folds `sweep/ledger.jsonl`. `history` holds what schedulers are told, in order.

    Its entries are (trial, number of the evaluation, metrics); number 0 says that the trial has ended. `crowned` are
    the trials that were on the front at any end.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file; a torn last line (a driver killed mid-write) is cut off.

        Raises CheckpointError when a line before the last cannot be read, or a point is not what its hash says.
        """
        self.path, self._folder = path, path.absolute().parent.parent
        self.trials: dict[int, Trial] = {}
        self.by_digest: dict[str, Trial] = {}
        self.history: list[tuple[int, int, Mapping[str, float]]] = []
        self.crowned: list[int] = []
        self.asked = 0
        self.spent_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fold_file()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def propose(
        self,
        point: Point,
        *,
        origin: str,
        asked: int,
        settings: Mapping[str, Any] | None = None,
        predicted: Mapping[str, float] | None = None,
        ranked_by: str = "",
        birth: Birth | None = None,
    ) -> Trial:
        """Add a point as the next trial; `asked` is how often the searcher was asked by now."""
        number = max(self.trials, default=-1) + 1
        born = {"birth": asdict(birth)} if birth is not None else {}
        self._append(
            {"event": "proposed", "trial": number, "point": dict(point), "hash": point_hash(point), "origin": origin,
             "asked": asked, **({"settings": as_kept(self._folder, settings)} if settings else {}),
             **({"predicted": dict(predicted)} if predicted else {}), **({"ranked_by": ranked_by} if ranked_by else {}),
             **born}
        )  # fmt: skip
        return self.trials[number]

    def fork(self, trial: Trial, fork: Fork) -> None:
        """Note which checkpoint of its parent a trial begins from: it is in the trial's folder by now."""
        self._append({"event": "forked", "trial": trial.number, **asdict(fork)})

    def begin(self, trial: Trial, repeat: int, *, workers: int, job: str) -> None:
        """Note that a repeat of a trial is about to be trained (again); `job` is its job's digest."""
        self._append(
            {"event": "begun", "trial": trial.number, "repeat": repeat, "workers": workers, "job": job,
             "time_s": round(time.time(), 3)}
        )  # fmt: skip

    def evaluate(self, trial: Trial, number: int, step: int, metrics: Mapping[str, float], *, stop: bool) -> None:
        """Note an evaluation and whether the scheduler ended the trial at it. Not waited for: the next line does."""
        self._append(
            {"event": "evaluated", "trial": trial.number, "number": number, "step": step, "metrics": dict(metrics),
             "stop": stop},
            durable=False,
        )  # fmt: skip

    def leave(self, trial: Trial, repeat: int, seconds: float) -> None:
        """Note that an attempt is over, however it ended, and what it took. Not waited for, like evaluations."""
        record = {"event": "left", "trial": trial.number, "repeat": repeat, "seconds": round(seconds, 3)}
        self._append(record, durable=False)

    def repeat(self, trial: Trial, index: int, values: Mapping[str, float]) -> None:
        """Note what one repeat gave."""
        self._append({"event": "repeat", "trial": trial.number, "index": index, "values": dict(values)})

    def reuse(self, trial: Trial, index: int, of: str) -> None:
        """Note that a repeat was not trained: it took the training of trial `of`."""
        self._append({"event": "reused", "trial": trial.number, "index": index, "of": of})

    def end(self, trial: Trial, state: str, *, values: Mapping[str, float] | None = None, reason: str = "") -> None:
        """Note how a trial ended (a state of `ENDED`, or interrupted)."""
        self._append(
            {"event": "ended", "trial": trial.number, "state": state, "values": dict(values or {}), "reason": reason,
             "step": trial.step, "total_steps": trial.total_steps}
        )  # fmt: skip

    def crown(self, front: Sequence[int]) -> None:
        """Note which trials are about to be told that they are on the front."""
        self._append({"event": "crowned", "front": list(front)})

    def spend(self, seconds: float) -> None:
        """Note how long this start of the sweep has lasted in all."""
        self._append({"event": "spent", "seconds": seconds})

    def _append(self, record: dict[str, Any], *, durable: bool = True) -> None:
        line = json.dumps({"at": now_iso(), **record}, separators=(",", ":"), allow_nan=True).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            if written < len(line):  # what comes after would be joined to a torn line
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            hint = "make room, or mend the disk, then --resume"
            raise CheckpointError(f"{self.path} could not be written: {error.strerror or error}", hint=hint) from error
        self._fold(record)

    def _fold_file(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._fold(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"line {number} of {self.path} cannot be read: {error}",
                    hint="restore the file, or start a new sweep",
                ) from error

    def _fold(self, record: Mapping[str, Any]) -> None:
        event = record["event"]
        if event == "proposed":
            self._add(record)
            return
        if event == "crowned":
            self.crowned = sorted({*self.crowned, *map(int, record["front"])})
            return
        if event == "spent":
            self.spent_s += float(record["seconds"])
            return
        trial = self.trials[int(record["trial"])]
        trial.apply(record)
        if event == "evaluated":
            self.history.append((trial.number, trial.evaluations, trial.curve[-1][1]))
        elif event == "ended" and trial.is_over and trial.attempts:
            self.history.append((trial.number, 0, {}))

    def _add(self, record: Mapping[str, Any]) -> None:
        point = dict(record["point"])
        if point_hash(point) != record["hash"]:
            raise ValueError(f"the point of trial {record['trial']} is not what its hash {record['hash']} says")
        birth = Birth(**record["birth"]) if "birth" in record else None
        predicted, settings = dict(record.get("predicted", {})), as_found(self._folder, record.get("settings", {}))
        ranked_by = str(record.get("ranked_by", ""))
        trial = Trial(
            int(record["trial"]), point, record["hash"], record["origin"], settings, predicted, ranked_by, birth=birth
        )  # fmt: skip
        self.trials[trial.number] = trial
        self.by_digest[trial.digest] = trial
        self.asked = max(self.asked, int(record["asked"]))
