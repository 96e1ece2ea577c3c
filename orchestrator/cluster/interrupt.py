"""Ctrl-C and SIGTERM: the first asks the run to finish its step, save and leave; the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.runs.control import request_stop
from orchestrator.runs.paths import RunDir

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handles both signals while the run goes on; on another thread than the main one nothing is changed."""

    def __init__(self, run: RunDir, on_event: Callable[[Event], None]) -> None:
        self._run = run
        self._on_event = on_event
        self._before: dict[int, Any] = {}
        self.count = 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        request_stop(self._run, name)
        self._on_event(Event("stopping", f"{name}: finishing the step and saving; once more ends it at once"))
