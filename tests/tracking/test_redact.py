"""Credentials leave no trace in what people read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from orchestrator.log import redact, redact_data, redact_value, setup_file_logging


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:s3cret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://u:p@ss@db/mlflow failed", "postgresql+psycopg2://***@db/mlflow failed"),
        ("GET https://host/a?user=ann&access_token=abc123&x=1", "GET https://host/a?user=ann&access_token=***&x=1"),
        ("sqlite:////data/runs/mlflow.db", "sqlite:////data/runs/mlflow.db"),
        ("write to ann@example.org", "write to ann@example.org"),
        ("run job.yaml data.api_key=abc123 train.epochs=5", "run job.yaml data.api_key=*** train.epochs=5"),
        ("run job.yaml 'data.api_key=abc 123' x", "run job.yaml 'data.api_key=***' x"),
        ("run job.yaml data.api_key='abc 123' x", "run job.yaml data.api_key=*** x"),
        ("run job.yaml 'data.name=a b' model.num_tokens=8", "run job.yaml 'data.name=a b' model.num_tokens=8"),
    ],
)
def test_credentials_inside_uris_and_overrides_are_cut_out(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize("key", ["data.api_key", "s3.SECRET_KEY", "password", "hub-token", "env/GITHUB_TOKEN"])
def test_values_of_secret_looking_keys_are_masked(key: str) -> None:
    assert redact_value(key, "abc123") == "***"


@pytest.mark.parametrize(
    ("key", "value"), [("model.num_tokens", 512), ("data.key", 3), ("train.monitor.metric", "val/loss"), ("token", "")]
)
def test_ordinary_values_are_shown(key: str, value: object) -> None:
    assert redact_value(key, value) == str(value)


def test_nested_data_is_masked_key_by_key_and_texts_below_a_secret_key_with_it() -> None:
    data = {
        "data": {"api_key": "abc123", "path": "http://ann:s3cret@host/x", "key": 3, "credentials": {"user": "ann"}},
        "space": {"data.api_key": ["abc123", "def456"], "optim.lr": [0.1, None]},
        "groups": [{"token": "abc123", "token_dim": 8, "empty_token": "", "flag": True}],
    }
    assert redact_data(data) == {
        "data": {"api_key": "***", "path": "http://***@host/x", "key": 3, "credentials": {"user": "***"}},
        "space": {"data.api_key": ["***", "***"], "optim.lr": [0.1, None]},
        "groups": [{"token": "***", "token_dim": 8, "empty_token": "", "flag": True}],
    }


def test_a_log_file_holds_no_credentials_not_even_in_a_traceback(tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        setup_file_logging(tmp_path / "a.log")
        try:
            raise OSError("cannot reach http://ann:s3cret@host")
        except OSError:
            logging.getLogger("third.party").exception("failed for %s", "http://ann:s3cret@host")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    text = (tmp_path / "a.log").read_text()
    assert "s3cret" not in text
    assert "failed for http://***@host" in text
    assert "OSError: cannot reach http://***@host" in text
