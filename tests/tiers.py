"""Which rows of a table the slow tests take: a seeded sample; `make soak` takes the others, too.

A row that is left to `make soak` carries the mark `soak`, which `make test-slow` leaves out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest


def sample_of(rows: Iterable[Any], count: int, *, seed: int) -> list[Any]:
    """Return all rows for `parametrize`, of which a sample of `count` is slow and the rest soak. A tuple is one row."""
    table = list(rows)
    chosen = set(random.Random(seed).sample(range(len(table)), count))
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.slow if at in chosen else _REST)
        for at, row in enumerate(table)
    ]


_REST = (pytest.mark.slow, pytest.mark.soak)
