"""What the driver says while a run goes on: events for the command line, notebooks and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something worth telling. `kind` is one of created, plan, tracking, attempt, ranks, metrics, failure, retry,
    hang, stopping, finishing, note, done; `data` holds the values for programs."""

    kind: str
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
