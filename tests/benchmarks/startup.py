"""Command to answer: `--help` (bar 0.1 s) and `check` (bar 0.4 s) as whole processes, beside an empty Python."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RUNS = 11
_COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "orchestrator --help (bar 0.1 s)": [str(Path(sys.executable).with_name("orchestrator")), "--help"],
    "orchestrator check jobs/digits_cnn.yaml (bar 0.4 s)": [
        str(Path(sys.executable).with_name("orchestrator")),
        "check",
        "jobs/digits_cnn.yaml",
    ],
}


def run() -> list[tuple[str, str]]:
    """Return (command, median wall seconds) rows; the commands take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(RUNS + 1):
        for name, command in _COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - begun)
    return [(name, f"{median(found[1:]):.3f} s") for name, found in seconds.items()]
