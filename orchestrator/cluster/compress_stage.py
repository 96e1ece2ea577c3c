"""The compressing process of a run: `python -m orchestrator.cluster.compress_stage RUN_DIR`, started by the driver.

`compress.stage` with a launcher, so that what trains between its steps does so where the job trained.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Compress the run whose folder is given; return the exit code."""
    from orchestrator.runs.parent import die_with_parent

    die_with_parent()
    from orchestrator.cluster.launch import Launcher
    from orchestrator.compress import stage

    with Launcher() as launch:
        return stage.main(sys.argv[1:], launch)


if __name__ == "__main__":
    sys.exit(main())
