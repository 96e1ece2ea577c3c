"""The door: help, unknown commands, exit codes, and errors as text and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli.app import VERBS, app
from orchestrator.cli.flags import Out, verb
from orchestrator.cli.render import error_lines, guarded
from orchestrator.errors import CheckpointError, JobFileError, NotAbleError, Problem

THERE = [name for name in VERBS if find_spec(f"orchestrator.cli.{name}")]


def run(*words: str) -> click.testing.Result:
    return CliRunner().invoke(app, list(words))


def test_help_lists_every_verb_and_the_exit_codes() -> None:
    answer = run("--help")
    assert answer.exit_code == 0
    assert all(name in answer.output for name in VERBS)
    assert "130 interrupted" in " ".join(answer.output.split())


@pytest.mark.parametrize("name", THERE)
def test_every_verb_explains_itself_with_an_example_and_has_the_common_flags(name: str) -> None:
    answer = run(name, "--help")
    assert answer.exit_code == 0
    assert "Example: orchestrator" in answer.output
    assert all(flag in answer.output for flag in ("--json", "--quiet", "--verbose"))
    assert import_module(f"orchestrator.cli.{name}").command.name == name


def test_no_words_at_all_give_the_help() -> None:
    assert (run().exit_code, run().output) == (0, run("--help").output)


def test_the_command_finds_a_users_module_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "nets_here.py").write_text("raise SystemExit(99)\nclass Net: ...\n")
    (tmp_path / "job.yaml").write_text("model: {use: nets_here:Net}\ndata: {use: digits}\n")
    command = [str(Path(sys.executable).parent / "orchestrator"), "check", "job.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "checked in the worker" in done.stderr


def test_an_unknown_command_names_the_nearest() -> None:
    answer = run("chekc", "x.yaml")
    assert answer.exit_code == 2
    assert "did you mean `check`?" in answer.output


def test_a_wrong_flag_is_bad_input_also_in_json() -> None:
    answer = run("check", "--resovled", "x.yaml", "--json")
    assert answer.exit_code == 2
    found = json.loads(answer.stdout)
    assert (found["ok"], found["kind"]) == (False, "UsageError")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("check", "x.yaml", "--set", "train.epochs=5"), "`orchestrator check JOB train.epochs=5`"),
        (("run", "x.yaml", "--train.epochs=5"), "`orchestrator run JOB train.epochs=5`"),
        (("run", "--resume", "x.yaml"), "`orchestrator run JOB --resume`"),
        (("check", "train.epochs=5", "x.yaml"), "the job file comes first"),
        (("eval", "digits-1", "train.epochs=5"), "replaces no values of a job"),
        (("check", "--resovled", "x.yaml"), "--help"),
    ],
)
def test_values_put_in_another_tools_way_are_answered_with_ours(words: tuple[str, ...], advice: str) -> None:
    answer = run(*words, "--json")
    assert answer.exit_code == 2
    assert advice in json.loads(answer.stdout.splitlines()[-1])["hint"]


def test_no_other_option_is_guessed_where_a_value_was_to_be_replaced() -> None:
    found = json.loads(run("check", "x.yaml", "--set", "train.epochs=5", "--json").stdout.splitlines()[-1])
    assert found["message"] == "no such option: --set"


def test_the_version_is_printed() -> None:
    assert run("--version").output.startswith("orchestrator 0.")


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (JobFileError("x", hint="do y"), 2, "JobFileError"),
        (CheckpointError("x"), 1, "CheckpointError"),
        (NotAbleError("x"), 4, "NotAbleError"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (click.Abort(), 130, "Interrupted"),
        (ZeroDivisionError("x"), 1, "ZeroDivisionError"),
    ],
)
def test_every_kind_of_error_has_its_exit_code_and_one_json_object(
    error: BaseException,
    code: int,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail() -> None:
        raise error

    assert guarded(fail, as_json=True, verbose=False) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["kind"], found["exit_code"]) == (False, kind, code) or found["exit_code"] == code


def test_an_unexpected_error_is_one_line_and_a_log_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail() -> None:
        raise ValueError("odd")

    assert guarded(fail, as_json=False, verbose=False) == 1
    text = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert "ValueError: odd" in text
    assert str(log) in text
    assert "Traceback" not in text
    assert "Traceback" in log.read_text()
    assert guarded(fail, as_json=False, verbose=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_problem_is_shown_with_place_path_quoted_line_caret_and_advice() -> None:
    problem = Problem("train.sed", "unknown key", "did you mean `seed`?", "unknown-key", "j.yaml", 9, 3, "  sed: 1")
    lines = [click.unstyle(line) for line in error_lines(JobFileError("j.yaml: 1 problem", problems=[problem]))]
    assert lines[:5] == [
        "error  j.yaml: 1 problem",
        "",
        "  j.yaml:9:3  train.sed  unknown key",
        "       9 |   sed: 1",
        "         |   ^^^ did you mean `seed`?",
    ]


def test_a_long_or_hostile_line_is_quoted_short_and_printable() -> None:
    source = "x" * 5000 + ": \x1b[31mred" + "y" * 5000
    problem = Problem("", "bad", "", "", "j.yaml", 1, 5003, source)
    lines = [click.unstyle(line) for line in error_lines(JobFileError("m", problems=[problem]))]
    assert max(map(len, lines)) < 130
    assert "\x1b" not in "".join(lines)


def test_json_sends_words_for_people_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out(json=True)
    out.say("working")
    out.result({"answer": 1}, ["for people"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"ok": True, "answer": 1}
    assert captured.err == "working\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(app, ["check", "no.yaml"], color=True).output
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in CliRunner().invoke(app, ["check", "no.yaml"], color=True).output


def test_what_a_verb_returns_is_the_exit_code() -> None:
    @verb(example="orchestrator x", name="x")
    def command(out: Out) -> int:
        """Do x."""
        return 4

    assert guarded(lambda: command.main([], standalone_mode=False), as_json=False, verbose=False) == 4
