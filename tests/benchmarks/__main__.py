"""`python -m tests.benchmarks [NAME ...]`: runs the benchmarks and prints a table each. `make bench` runs all."""

from __future__ import annotations

import platform
import sys
import time
from importlib import import_module

BENCHMARKS = (
    "startup",
    "engine_step",
    "first_step",
    "recovery",
    "layouts",
    "compression",
    "sweeps",
    "population",
    "mfu",
)


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}")
    for name in names or BENCHMARKS:
        rows = import_module(f"tests.benchmarks.{name}").run()
        width = max(len(what) for what, _ in rows)
        print(f"\n{name}")
        for what, figure in rows:
            print(f"  {what:<{width}}  {figure}")


if __name__ == "__main__":
    main(sys.argv[1:])
