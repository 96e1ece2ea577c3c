"""The description opens with the verdict and ends with the command."""

from __future__ import annotations

import pytest

from orchestrator.tracking.note import build_note, build_verdict


def test_the_verdict_names_best_value_test_value_and_layout() -> None:
    line = build_verdict(
        "finished",
        {"val/accuracy": 0.9712, "test/accuracy": 0.98611, "test/loss": 0.05},
        monitor="val/accuracy",
        best={"val/accuracy": 0.98889},
        best_epoch=12.0,
        layout="2 ranks = replicate 2",
    )
    assert line == "finished: val/accuracy 0.989 at epoch 12 (best), test/accuracy 0.986, 2 ranks = replicate 2"


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({}, "failed"),
        ({"val/loss": 0.5}, "failed: val/loss 0.500"),
        ({"val/loss": 1e-6, "test/loss": 2e7}, "failed: val/loss 1e-06, test/loss 2e+07"),
    ],
)
def test_a_verdict_makes_up_no_numbers(metrics: dict[str, float], line: str) -> None:
    assert build_verdict("failed", metrics, monitor="val/loss") == line


def test_the_note_is_verdict_text_table_command_without_credentials() -> None:
    note = build_note(
        "finished: val/loss 0.1",
        [("data", "digits | 8x8"), ("tracking", "http://ann:s3cret@host")],
        command="orchestrator run job.yaml track.uri=http://ann:s3cret@host",
        text="My own words.",
    )
    lines = note.splitlines()
    assert lines[0] == "finished: val/loss 0.1"
    assert lines[2] == "My own words."
    assert "| data | digits \\| 8x8 |" in lines
    assert lines[-3:] == ["```", "orchestrator run job.yaml track.uri=http://***@host", "```"]
    assert "s3cret" not in note
