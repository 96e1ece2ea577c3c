"""How an error looks on the terminal and as JSON, and which exit code it gives. Used by `app` for every command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import click

from orchestrator.cli.flags import color
from orchestrator.errors import JobFileError, OrchestratorError, PlanError, Problem

INTERRUPTED = 130
_TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s,:\[\]{}=]+")
_WIDTH = 100


def guarded(call: Callable[[], Any], *, as_json: bool, verbose: bool) -> int:
    """Run a command; return its exit code, after printing any error the way the user asked for."""
    try:
        result = call()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        show_error(
            OrchestratorError(_usage_message(error), hint=_usage_hint(error)), as_json, kind="UsageError", code=2
        )
        return 2
    except OrchestratorError as error:
        show_error(error, as_json)
        if verbose and not isinstance(error, JobFileError | PlanError):  # the job's mistakes are said, not traced
            click.echo(_traceback(), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        show_error(OrchestratorError("interrupted"), as_json, kind="Interrupted", code=INTERRUPTED)
        return INTERRUPTED
    except Exception as error:  # the last door before the terminal: whatever is left becomes one line and a log file
        show_error(_unexpected(error, verbose), as_json, kind=type(error).__name__)
        return 1


def show_error(error: OrchestratorError, as_json: bool, *, kind: str = "", code: int | None = None) -> None:
    """Print an error: as text on stderr, or as one JSON object on stdout."""
    if as_json:
        import json

        click.echo(json.dumps(error_json(error, kind=kind, code=code), ensure_ascii=False))
        return
    for line in error_lines(error):
        click.echo(line, err=True, color=color())


def error_json(error: OrchestratorError, *, kind: str = "", code: int | None = None) -> dict[str, Any]:
    """Return an error as plain JSON-ready values."""
    return {
        "ok": False,
        "kind": kind or type(error).__name__,
        "exit_code": error.exit_code if code is None else code,
        "message": error.message,
        "hint": error.hint,
        "problems": [problem.as_dict() for problem in error.problems],
    }


def error_lines(error: OrchestratorError) -> Iterator[str]:
    """Yield an error in lines: what, then each problem with its place, the line quoted and one repair."""
    yield f"{click.style('error', fg='red', bold=True)}  {printable(error.message)}"
    for problem in error.problems:
        yield ""
        yield from _problem_lines(problem)
    if error.hint:
        yield f"  {click.style('try', fg='green')}  {printable(error.hint)}"
    if error.problems:
        yield ""
        yield click.style("docs/jobs.md lists every key; `orchestrator check JOB` starts nothing", dim=True)


def _problem_lines(problem: Problem) -> Iterator[str]:
    exact = problem.line and not problem.file.startswith("override ")
    place = printable(f"{problem.file}:{problem.line}:{problem.column}" if exact else problem.file)
    hint = printable(problem.hint)
    head = [click.style(place, bold=True)] if place else []
    head += [click.style(printable(problem.path), fg="cyan")] if problem.path else []
    yield f"  {'  '.join([*head, printable(problem.message)])}"
    if problem.source and problem.line:
        source, start = _window(problem.source, problem.column - 1)
        yield f"  {problem.line:>6} | {source}"
        caret = " " * start + click.style("^" * _token_width(source, start), fg="red")
        yield f"         | {caret} {hint}".rstrip()
    elif hint:
        yield f"         {hint}"


def printable(text: str) -> str:
    """Return text without characters that could steer a terminal: values of a job file are quoted in messages."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text.replace("\t", " "))


def _window(source: str, start: int) -> tuple[str, int]:
    """Return the part of a long line around a column (and the column in it), control characters made visible."""
    plain = printable(source)
    if len(plain) <= _WIDTH:
        return plain, min(start, len(plain))
    first = max(0, start - _WIDTH // 2)
    return ("..." if first else "") + plain[first : first + _WIDTH] + "...", start - first + (3 if first else 0)


def _token_width(source: str, start: int) -> int:
    found = _TOKEN.match(source, start)
    return max(1, len(found.group()) if found else 1)


def _usage_message(error: click.ClickException) -> str:
    if _is_override(error):  # click would guess another option, and contradict the hint
        return f"no such option: {error.option_name}"
    return error.format_message()


def _is_override(error: click.ClickException) -> TypeGuard[click.NoSuchOption]:
    """Say whether an option that does not exist was to replace a value of the job, as other tools have it."""
    context = getattr(error, "ctx", None)
    if not isinstance(error, click.NoSuchOption) or context is None:
        return False
    name = error.option_name.lstrip("-")
    return _takes_overrides(context) and (name in ("set", "override", "s", "o") or "." in name)


def _takes_overrides(context: click.Context) -> bool:
    return any(each.name == "overrides" for each in context.command.params)


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if context is None:
        return ""
    if _is_override(error):
        return f"values of the job are replaced without an option: `{context.command_path} JOB train.epochs=5`"
    if isinstance(error, click.MissingParameter) and context.params.get("resume"):
        return f"what follows --resume is a run; the job comes before it: `{context.command_path} JOB --resume`"
    said = error.format_message()
    if "unexpected extra argument" in said and not _takes_overrides(context) and "=" in said:
        return f"`{context.command_path}` replaces no values of a job; write them into a file that `extends:` it"
    return f"`{context.command_path} --help` explains the arguments"


def _traceback() -> str:
    import traceback

    return traceback.format_exc()


def _unexpected(error: Exception, verbose: bool) -> OrchestratorError:
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if verbose:
        click.echo(_traceback(), err=True)
        return OrchestratorError(message)
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="orchestrator-", suffix=".log", delete=False) as file:
        file.write(_traceback())
    return OrchestratorError(message, hint=f"unexpected; details are in {file.name}, or run it again with -v")
