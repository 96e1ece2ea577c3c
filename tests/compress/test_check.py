"""What the check measures and refuses, on pages and arrays made by hand: no model, no runtime, no process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.compress import verify
from orchestrator.compress.check import check
from orchestrator.compress.manifest import CHECK_FILE, EVAL_FILE, Page, entry_of, read_page
from orchestrator.compress.pipeline import Outcome, StepReport
from orchestrator.compress.report import table
from orchestrator.compress.verify import check_artifact
from orchestrator.errors import ExportError
from orchestrator.export.manifest import json_digest
from orchestrator.export.score import score
from orchestrator.spec.base import Use

from .making import lay_out, make_job, make_trained

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]

FILE = "model.bin"
MLP = {"use": "mlp", "inputs": 64, "hidden": [8], "outputs": 10}


class Fake:
    """A runtime whose every file answers what it is told to."""

    files: tuple[str, ...] = (FILE,)
    refused: tuple[str, ...] = ()
    reference = "onnx"
    code: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def __init__(self, run: Run) -> None:
        self._run = run

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        return self._run

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        return {"coverage": 1.0}


def lay(root: Path, outputs: Array, targets: Array, **changes: Any) -> tuple[Path, Page]:
    """Return an artifact folder and its page, of a model that answers `outputs` to inputs 0, 1, 2, ..."""
    folder = root / "artifact"
    folder.mkdir()
    (folder / FILE).write_bytes(b"0" * 10)
    inputs = np.arange(len(outputs))
    np.savez(root / CHECK_FILE, inputs=inputs, outputs=outputs)
    np.savez(root / EVAL_FILE, inputs=inputs, targets=targets)
    fields: dict[str, Any] = {
        "format": "onnx",
        "scheme": "fp32",
        "needed": {FILE: entry_of(folder / FILE)},
        "beside": {name: entry_of(root / name) for name in (CHECK_FILE, EVAL_FILE)},
        "inputs": {},
        "outputs": {},
        "target_kind": "class",
        "split": "test",
        "baseline_bytes": 100,
        "lineage": (),
        "job": {},
        "job_digest": "",
        "checkpoint": "",
        "versions": {},
        "machine": {},
        "measure": {},
        "limits": {},
    }
    return folder, Page(**fields | changes)


def judge(root: Path, outputs: Array, targets: Array, answers: Array | None = None, **changes: Any) -> dict[str, Any]:
    """Check a file that gives `answers` (those of its model, if none are given) in place of `outputs`."""
    folder, page = lay(root, outputs, targets, **changes)
    given = outputs if answers is None else answers
    return check(folder, page, Fake(lambda rows: given[rows.astype(np.int64)]))


def scores(rows: int = 40, columns: int = 3) -> Array:
    return np.random.default_rng(0).standard_normal((rows, columns))


def test_a_file_that_answers_as_its_model_holds(tmp_path: Path) -> None:
    found = judge(tmp_path, scores(), scores().argmax(1))
    assert found["metrics"]["accuracy"] == 1


def test_a_page_of_before_has_no_loss_and_is_read(tmp_path: Path) -> None:
    folder, page = lay(tmp_path, scores(), scores().argmax(1))
    payload = json.loads(json.dumps(asdict(page)))
    for name in ("loss", "eager"):
        del payload[name]
    payload["notes"] = []
    (folder / "manifest.json").write_text(json.dumps(payload | {"sha256": json_digest(payload)}))
    assert read_page(folder) == page


def test_targets_that_the_job_ignores_are_ignored_and_its_own_loss_is_left_out(tmp_path: Path) -> None:
    targets = scores().argmax(1)
    targets[:10] = -100
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    (tmp_path / "one").mkdir()
    found = judge(tmp_path / "one", scores(), targets, loss={"use": "cross_entropy", "options": options})
    assert found["metrics"]["accuracy"] == 1
    found = judge(tmp_path, scores(), scores().argmax(1), loss={"use": "mine:Loss", "custom": True})
    assert found["metrics"] == {"accuracy": 1}
    step = StepReport(0, "trained", 0.0, 100, 10, {})
    said = "\n".join(table(Outcome(tmp_path, (), step, found | {"split": "test"})))
    assert "no loss of the file: mine:Loss is code of the job, which is not run to judge it" in said


def test_another_models_file_fails_under_a_scheme_that_is_not_known_too(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"scheme int8-mine .* not known") as caught:
        judge(tmp_path, scores(), scores().argmax(1), -scores(), scheme="int8-mine")
    assert "int8-static" in caught.value.hint


def test_a_limit_on_the_accuracy_is_kept_against_eager_pytorch_where_the_runtime_has_no_model_before(
    tmp_path: Path,
) -> None:
    wrong = (scores().argmax(1) + (np.arange(40) < 4)) % 3
    limits, before = {"accuracy_drop": 0.05}, {"loss": 0.1, "accuracy": 1.0}
    with pytest.raises(ExportError, match=r"accuracy fell by 0\.1000, compress\.limits\.accuracy_drop allows 0\.05"):
        judge(tmp_path, scores(), wrong, limits=limits, eager=before)


@pytest.mark.parametrize(("kind", "words"), [("class", "of the model as it was"), ("value", "targets of kind value")])
def test_a_limit_on_an_accuracy_that_nobody_knows_fails(tmp_path: Path, kind: str, words: str) -> None:
    targets = scores().argmax(1) if kind == "class" else scores()
    with pytest.raises(ExportError, match=f"accuracy_drop is kept cannot be said: there is no accuracy .*{words}"):
        judge(tmp_path, scores(), targets, target_kind=kind, limits={"accuracy_drop": 0.05})


def test_the_page_has_the_quality_of_a_model_before_that_its_runtime_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise ExportError("no such operator")

    monkeypatch.setattr("orchestrator.compress.export.write", refuse)
    job = make_job(MLP, [{"use": "export"}]).model_copy(
        update={"data": Use.model_validate({"use": "digits", "flat": True})}
    )
    trained = make_trained(job, epochs=0)
    (tmp_path / "model.onnx").write_bytes(b"0")
    page = read_page(lay_out(trained, tmp_path / "model.onnx", tmp_path / "out", trained.model, "fp32"))
    found = score(trained.model, trained.job, trained.data, trained.split)
    assert page.eager == pytest.approx(dict(found.metrics), rel=1e-5)


def test_a_judging_process_that_does_not_end_is_an_error_that_names_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TIMEOUT_S", 0.01)
    with pytest.raises(ExportError, match=r"compress\.check did not end within 0\.01 s"):
        check_artifact(tmp_path)
