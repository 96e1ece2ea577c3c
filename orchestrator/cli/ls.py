"""`orchestrator ls`: which models, data sets and other parts there are, and the keys each takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from orchestrator.cli.flags import Out, verb


@verb(example="orchestrator ls models")
@click.argument("group", required=False)
@click.argument("name", required=False)
def command(out: Out, group: str | None, name: str | None) -> None:
    """List the parts that `use:` can name, one GROUP (models, data, ...) or one NAME of it.

    Parts of other installed packages are listed like built-ins. Without a group, only names are shown.
    """
    from orchestrator import plugins
    from orchestrator.errors import JobFileError
    from orchestrator.wording import nearest

    if group is not None and group not in plugins.GROUPS:
        close = nearest(group, plugins.GROUPS)
        hint = f"did you mean `{close}`? " if close else ""
        raise JobFileError(f"no group is called '{group}'", hint=f"{hint}groups: {', '.join(plugins.GROUPS)}")
    if group is None:
        rows = {each: plugins.names(each) for each in plugins.GROUPS}
        width = max(map(len, rows))
        out.result({"groups": rows}, [f"{each:<{width}}  {', '.join(found) or '-'}" for each, found in rows.items()])
        return
    if name is not None and (problem := plugins.find_problem(group, name)) is not None:
        raise JobFileError(problem.message, hint=problem.hint)
    parts = [_part(group, each) for each in ([name] if name else plugins.names(group))]
    out.result({"group": group, "parts": parts}, [line for part in parts for line in _lines(part)])


def _part(group: str, name: str) -> dict[str, Any]:
    from orchestrator import plugins
    from orchestrator.errors import JobFileError
    from orchestrator.spec.schema import option_rows, summary

    part: dict[str, Any] = {"name": name, "about": "", "keys": []}
    try:
        config = plugins.light_config(group, name)
    except JobFileError as error:
        return {**part, "about": error.message}
    if config is None:
        return {**part, "about": "(its keys are checked where it is built)"}
    part["about"] = summary(plugins.load(group, name)) or summary(config)
    part["keys"] = [{"key": key, "takes": takes, "default": default} for key, takes, default in option_rows(config)]
    return part


def _lines(part: dict[str, Any]) -> Iterator[str]:
    yield f"{click.style(part['name'], bold=True)}  {part['about']}"
    width = max((len(key["key"]) for key in part["keys"]), default=0)
    for key in part["keys"]:
        default = key["default"] if key["default"] == "required" else f"default {key['default']}"
        yield f"    {key['key']:<{width}}  {key['takes']}, {default}"
