"""`orchestrator doctor`: is this machine able? One line for each answer, with a repair where there is one."""

from __future__ import annotations

from dataclasses import asdict

import click

from orchestrator.cli.flags import Out, verb

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}
_NOT_ABLE = 4


@verb(example="orchestrator doctor jobs/digits_cnn.yaml")
@click.argument("job", required=False)
def command(out: Out, job: str | None) -> int:
    """Say whether this machine can run jobs, and how to mend what is missing.

    With a JOB, its storage folder and its tracking server are checked too. Exit code 4 when something must be mended.
    """
    from orchestrator.cli.doctor_checks import examine

    storage, uri = "runs", None
    if job is not None:
        from orchestrator.spec.load import load_job

        spec = load_job(job).spec
        storage, uri = spec.cluster.storage, spec.track.uri
    findings = []
    lines = []
    for finding in examine(storage, uri):
        findings.append(finding)
        if not (out.quiet and finding.level == "ok"):
            repair = f"    {click.style(finding.repair, dim=True)}" if finding.repair else ""
            lines.append(f"{click.style(f'{finding.level:<4}', fg=_COLORS[finding.level])}  {finding.text}{repair}")
    able = all(finding.level != "fail" for finding in findings)
    out.result({"able": able, "findings": [asdict(finding) for finding in findings]}, lines)
    return 0 if able else _NOT_ABLE
