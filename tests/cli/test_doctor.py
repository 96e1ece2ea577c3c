"""`doctor`: each answer for a machine that is fine and for one that is not."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import doctor_checks
from orchestrator.cli.app import app
from orchestrator.cli.doctor_checks import Finding, examine, storage_finding, tracking_finding

TORCH = {"version": "2.13.0", "gpus": [], "gloo": True, "nccl": False}


@pytest.fixture
def torch_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the torch process answers; starting it takes a second, so only one test does."""
    answer: dict[str, Any] = dict(TORCH)
    monkeypatch.setattr(doctor_checks, "_ask_torch", lambda: answer.get("error") or answer)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return answer


def find(what: str, folder: Path) -> Finding:
    return next(each for each in examine(str(folder), None) if each.what == what)


def test_this_machine_is_able_and_torch_is_asked_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(answer.stdout)
    assert answer.exit_code == 0, answer.output
    assert found["able"] is True
    assert {"python", "torch", "ray", "mlflow", "collectives", "storage", "tracking"} <= {
        each["what"] for each in found["findings"]
    }
    assert list(tmp_path.iterdir()) == []


def test_a_broken_torch_is_a_failure_with_a_repair_and_exit_code_4(
    torch_says: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch_says["error"] = "OSError: libtorch.so: cannot open shared object file"
    answer = CliRunner().invoke(app, ["doctor", "-q"])
    assert answer.exit_code == 4
    assert "fail  torch cannot be imported: OSError: libtorch.so" in answer.stdout
    assert "pip install 'torch" in answer.stdout
    assert "ok    python" not in answer.stdout


def test_gpus_are_named_and_missing_nccl_is_a_warning(torch_says: dict[str, Any], tmp_path: Path) -> None:
    torch_says["gpus"] = ["NVIDIA H100", "NVIDIA H100"]
    assert find("torch", tmp_path).text == "torch 2.13.0, 2 x NVIDIA H100"
    assert find("nccl", tmp_path).level == "warn"


@pytest.mark.parametrize("file", ["token", "state/orchestrator/ray_token"], ids=["ray's", "ours"])
def test_a_token_that_others_can_read_is_told_with_the_repair(
    torch_says: dict[str, Any], tmp_path: Path, file: str
) -> None:
    assert [each.text for each in examine(str(tmp_path), None) if each.what == "ray token"] == [
        "Ray token: none yet, made by the first run"
    ]
    token = tmp_path / file
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("x")
    token.chmod(0o644)
    assert [each.repair for each in examine(str(tmp_path), None) if each.what == "ray token"][
        -1
    ] == f"chmod 600 {token}"
    token.chmod(0o600)
    assert all(each.level == "ok" for each in examine(str(tmp_path), None) if each.what == "ray token")


def test_a_storage_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert storage_finding(tmp_path / "new" / "runs").level == "ok"
    monkeypatch.setattr(doctor_checks.tempfile, "NamedTemporaryFile", refuse)
    found = storage_finding(tmp_path)
    assert (found.level, "Permission denied" in found.text) == ("fail", True)


def test_the_sqlite_store_is_opened_read_only(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    assert "none yet" in tracking_finding(tmp_path, None).text
    assert not store.exists()
    store.write_text("this is no database, but long enough to look like one to nobody")
    assert tracking_finding(tmp_path, None).level == "fail"
    store.unlink()
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.commit()
    assert tracking_finding(tmp_path, f"sqlite:///{store}").level == "ok"


def test_a_tracking_server_is_asked_for_its_health(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 403)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Stay quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert tracking_finding(tmp_path, address).level == "ok"
        assert "answers 403" in tracking_finding(tmp_path, f"{address}/other").text
    finally:
        server.shutdown()
        server.server_close()
    gone = tracking_finding(tmp_path, address)
    assert gone.level == "fail"
    assert "refused" in gone.text
    assert "track.offline=true" in gone.repair
