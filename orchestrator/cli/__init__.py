"""The command line: `orchestrator VERB`. A door without logic; each verb is a module, imported when it is called."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code (the entry point of `orchestrator` and `orch`)."""
    import os
    import sys
    from contextlib import suppress

    from orchestrator.cli.app import app

    # `use: my_nets:Net` is looked for in the working folder too, after everything installed.
    with suppress(FileNotFoundError):  # the working folder may have been deleted
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())
    app()
