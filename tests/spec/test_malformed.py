"""Every malformed job is refused quickly, at the right place, once, in plain words, with advice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.app import app
from tests.spec.malformed import CASES, Case

SECONDS = 1.0


def place(case: Case, folder: Path) -> list[str]:
    """Write a case's files into the folder (which becomes the working directory); return the words after `check`."""
    text = case.text if isinstance(case.text, bytes) else case.text.encode()
    for name, content in case.others:
        if name == "!":
            text += content.encode()
        else:
            (folder / name).write_text(content)
    (folder / "job.yaml").write_bytes(text)
    (folder / "own_nets.py").write_text("open('imported', 'w').close()\nclass Net: ...\n")
    return ["check", "job.yaml", *case.overrides]


def expected_place(case: Case) -> tuple[str, int, int]:
    """Return (file, line, column) of a case's `at`."""
    if case.at.startswith("#"):
        number, column = case.at[1:].split(":")
        return f"override #{number}", 1, int(column)
    *file, line, column = case.at.split(":")
    return file[0] if file else "job.yaml", int(line), int(column)


def judge(case: Case, answer: dict[str, Any]) -> None:
    """Fail unless the answer (the JSON of `check`) refuses the case as it must be refused."""
    assert answer["ok"] is False
    assert len(answer["problems"]) == 1, [(each["path"], each["message"]) for each in answer["problems"]]
    found = answer["problems"][0]
    assert found["path"] == case.path
    assert (found["file"], found["line"], found["column"]) == expected_place(case)
    assert case.says in found["message"], found["message"]
    assert case.advice in found["hint"], found["hint"]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}-{case.name}".replace(" ", "_") for case in CASES])
def test_a_malformed_job_is_refused_once_at_its_place_with_advice(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = place(case, tmp_path)
    start = time.perf_counter()
    answer = CliRunner().invoke(app, [*words, "--json"])
    assert time.perf_counter() - start < SECONDS
    assert answer.exit_code == 2, answer.output
    judge(case, json.loads(answer.stdout))
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 2
    assert "Traceback" not in text.output
    assert case.says in text.output
    assert case.advice in text.output
    assert not (tmp_path / "imported").exists(), "a user's module was imported"
    assert not (tmp_path / "pwned").exists(), "the job file was executed"


def test_the_table_has_at_least_60_cases_in_12_classes() -> None:
    assert len(CASES) >= 60
    assert len({case.kind for case in CASES}) >= 12
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", random.Random(2).sample(CASES, 6), ids=lambda case: case.name.replace(" ", "_"))
def test_the_real_command_refuses_within_a_second_of_processor_time(case: Case, tmp_path: Path) -> None:
    import resource

    words = place(case, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert case.advice in done.stderr
    # Processor time: what the command takes on a machine that is not busy with other tests.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
