"""`verb`: turns a function into a command with the flags that every command has, and `Out`, where its words go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from orchestrator.environment import no_color

Body = Callable[..., int | None]


@dataclass(frozen=True)
class Out:
    """Where a verb's words go. With `--json`, standard output carries exactly one object, all else goes to stderr."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def say(self, text: str = "", *, err: bool = False) -> None:
        """Print a line for people; silent with `-q`, on stderr with `--json`."""
        if not self.quiet:
            click.echo(text, err=err or self.json, color=color())

    def note(self, text: str) -> None:
        """Print something worth knowing, on stderr."""
        self.say(f"{click.style('note', fg='cyan')}  {text}", err=True)

    def result(self, payload: Mapping[str, Any], lines: Iterable[str] = ()) -> None:
        """Print what was asked for: `payload` as one JSON object (`ok` is added), or `lines`, which `-q` leaves in."""
        if self.json:
            import json

            click.echo(json.dumps({"ok": True, **payload}, default=str, ensure_ascii=False))
            return
        for line in lines:
            click.echo(line, color=color())


def color() -> bool | None:
    """Return False when the user asked for plain text; None lets click find out whether this is a terminal."""
    return False if no_color() else None


def verb(*, example: str, name: str | None = None) -> Callable[[Body], click.Command]:
    """Make a command of a function whose first argument is an `Out`; what it returns is the exit code (None: 0).

    The function's docstring is its help, `example` a command line to show below it.
    """

    def decorate(body: Body) -> click.Command:
        def call(**values: Any) -> int | None:
            out = Out(values.pop("as_json"), values.pop("quiet"), values.pop("verbose"))
            return body(out, **values)

        call.__doc__ = body.__doc__
        params = [*reversed(getattr(body, "__click_params__", [])), *_common()]
        return click.Command(
            name or body.__module__.rpartition(".")[2],
            params=params,
            callback=call,
            help=body.__doc__,
            epilog=f"Example: {example}",
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    return decorate


def _common() -> list[click.Parameter]:
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Print only the result and errors."),
        click.Option(
            ["-v", "--verbose"], is_flag=True, help="Print details, and tracebacks of errors that are not the job's."
        ),
    ]


job_argument = click.argument("job", metavar="JOB")
overrides_argument = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
