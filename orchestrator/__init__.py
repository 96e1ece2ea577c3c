"""Distributed training from one job file. `load`, `check`, `build_plan` and `run` do what the commands do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_API = ("load", "check", "build_plan", "run", "run_sweep", "resume", "evaluate", "list_runs", "open_run")
__all__ = ["__version__", *_API]

# In a plain checkout (not installed) `models/` and `jobs/` are siblings of this folder; an installation maps them here.
_here = Path(__file__).parent
if not (_here / "models").is_dir() and (_here.parent / "models" / "__init__.py").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    """Load the Python API on first use, so that importing the package stays as cheap as importing nothing."""
    if name in _API:
        return getattr(import_module("orchestrator.api"), name)
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
