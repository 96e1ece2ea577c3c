"""The command group. Verbs are a static table of module names, so that `--help` imports none of them."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from orchestrator import __version__
from orchestrator.cli.render import guarded

# Verb -> what it does, in the order of a user's day. The module is orchestrator.cli.<verb>, its `command` the command.
VERBS = {
    "init": "Copy a ready job file to start from.",
    "check": "Say what is wrong with a job file; starts nothing.",
    "plan": "Show what a job would do and need; starts nothing.",
    "run": "Train a model from a job file.",
    "sweep": "Search a job's architecture and hyper-parameters.",
    "verify": "Prove that a job's layout computes what one process computes.",
    "stop": "Ask a running job to save and end.",
    "runs": "List, compare and synchronise runs.",
    "eval": "Evaluate a finished run on its test split.",
    "export": "Write files of a run's trained model.",
    "compress": "Make a trained model smaller and faster, and verify the file.",
    "ui": "Start the MLflow page and print the link of the last run.",
    "clean": "Delete old runs and what they left.",
    "ls": "List models, data and other parts with their keys.",
    "schema": "Print the JSON Schema or the reference of job files.",
    "doctor": "Say whether this machine is able, and how to mend it.",
}


class VerbGroup(click.Group):
    """Imports a verb's module when the verb is called; prints errors in one way whatever the verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command; None when there is none of that name."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"orchestrator.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one names the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from orchestrator.wording import nearest

            close = nearest(args[0], VERBS)
            advice = f"did you mean `{close}`?" if close else f"commands: {', '.join(VERBS)}"
            raise click.UsageError(f"no command is called '{args[0]}'; {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run and exit: 0 ok, 1 failed, 2 bad input, 3 some trials failed, 4 not able, 130 interrupted."""
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        extra["standalone_mode"] = False
        main = super().main
        code = guarded(
            lambda: main(args=words, prog_name="orchestrator", **extra),
            as_json="--json" in words,
            verbose="-v" in words or "--verbose" in words,
        )
        sys.exit(code)


_SETTINGS: MutableMapping[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(
    cls=VerbGroup,
    context_settings=_SETTINGS,
    epilog="Example: orchestrator run jobs/digits_cnn.yaml train.epochs=2. "
    "Exit codes: 0 ok, 1 the run failed, 2 bad input, 3 some trials failed, 4 the environment is not able, "
    "130 interrupted.",
)
@click.version_option(__version__, message="orchestrator %(version)s")
def app() -> None:
    """Train from one job file: on a laptop, on a Ray cluster, tracked in MLflow."""
