"""What does a process take that answers one batch? Prints seconds until the first answer and the peak of its memory.

`python -m orchestrator.compress.footprint KIND FOLDER FORMAT TARGET STARTED`: KIND is eager, runtime (the model as it
was, in FORMAT's runtime) or candidate; TARGET is cpu or cuda; STARTED is the starter's monotonic clock. A process each,
so that nothing is counted for another.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.compress.runtimes.base import Run

_ROWS = 32


def main(arguments: list[str]) -> int:
    """Answer one batch and say what it took."""
    import numpy as np

    kind, folder, format, target, started = arguments
    with np.load(Path(folder).parent / "evaluation.npz", allow_pickle=False) as file:
        inputs = np.ascontiguousarray(file["inputs"][:_ROWS])
    run = _open(kind, Path(folder), format, target)
    run(inputs)
    found = {"ready_s": time.monotonic() - float(started), "peak_rss_bytes": peak_rss_bytes()}
    if target == "cuda":
        import torch

        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _open(kind: str, folder: Path, format: str, target: str) -> Run:
    """Return what shall answer. Of an artifact its page is not read: that is no part of deploying it."""
    if kind == "eager":
        from orchestrator.compress.manifest import read_page
        from orchestrator.compress.timing import open_eager

        return open_eager(folder, read_page(folder))
    from orchestrator.compress.runtimes.base import REFERENCE, open_deployed, runtime_of

    if kind == "runtime":
        return open_deployed(folder.parent / REFERENCE, runtime_of(format).reference, target)
    return open_deployed(folder, format, target)


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
