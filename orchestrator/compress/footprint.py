"""What does a process take that answers one batch? `python -m orchestrator.compress.footprint KIND FOLDER STARTED`.

KIND is eager, runtime or candidate; STARTED is the starter's monotonic clock. Prints seconds until the first answer and
the peak of resident memory. A process each, so that nothing is counted for another.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_ROWS = 32


def main(arguments: list[str]) -> int:
    """Answer one batch and say what it took."""
    import numpy as np

    kind, folder, started = arguments[0], Path(arguments[1]), float(arguments[2])
    with np.load(folder.parent / "evaluation.npz", allow_pickle=False) as file:
        inputs = np.ascontiguousarray(file["inputs"][:_ROWS])
    if kind == "eager":
        from orchestrator.compress.manifest import read_page
        from orchestrator.compress.timing import _eager

        run = _eager(folder, read_page(folder))
    else:
        from orchestrator.compress.runtime import open_onnx

        run = open_onnx(folder.parent / "reference" / "model.onnx" if kind == "runtime" else _candidate(folder))
    run(inputs)
    ready_s = time.monotonic() - started
    sys.stdout.write(json.dumps({"ready_s": ready_s, "peak_rss_bytes": peak_rss_bytes()}) + "\n")
    return 0


def _candidate(folder: Path) -> Path:
    """Return the artifact's file. Its page is not read: that is no part of deploying it."""
    return next(path for name in ("model.onnx", "model.pack") if (path := folder / name).is_file())


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process; 0 where the system does not say.

    Not `ru_maxrss`, which after a fork starts at what the parent had.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
