"""`orchestrator schema`: the job format for editors (JSON Schema) and for people (Markdown)."""

from __future__ import annotations

import click

from orchestrator.cli.flags import Out, verb


@verb(example="orchestrator schema > job.schema.json")
@click.option("--markdown", is_flag=True, help="Print the reference of all keys instead (docs/jobs.md).")
@click.option("--installed", is_flag=True, help="Add the parts of other installed packages, not only built-ins.")
def command(out: Out, markdown: bool, installed: bool) -> None:
    """Print the JSON Schema of job files.

    A job file whose first line is `# yaml-language-server: $schema=./job.schema.json` is completed and checked by
    editors that know that line (VS Code with the YAML extension, and others).
    """
    import json

    from orchestrator.spec.schema import full_schema, schema_text

    if markdown:
        from orchestrator.spec.reference import reference

        text = reference()
        out.result({"markdown": text}, [text.rstrip("\n")])
        return
    if out.json:
        out.result({"schema": full_schema(built_in=not installed)})
        return
    text = json.dumps(full_schema(), indent=1, ensure_ascii=False) if installed else schema_text().rstrip("\n")
    out.result({}, [text])
