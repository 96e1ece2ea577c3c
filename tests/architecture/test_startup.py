"""The command answers at once. Bars are for a quiet machine; three times as much is allowed here, in processor time."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOSE = 3.0


def processor_seconds(words: tuple[str, ...]) -> float:
    """Return user + system time of one run of the command."""
    process = subprocess.Popen([sys.executable, "-m", "orchestrator", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("words", "bar_s"), [(("--help",), 0.1), (("check", "jobs/smoke.yaml"), 0.4)], ids=["help", "check"]
)
def test_the_command_starts_within_its_bar(words: tuple[str, ...], bar_s: float) -> None:
    took = [processor_seconds(words) for _ in range(5)]
    assert statistics.median(took) < LOOSE * bar_s, took
