"""What the check measures and refuses, on pages and arrays made by hand: no model, no runtime, no process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.compress.check import check
from orchestrator.compress.manifest import CHECK_FILE, EVAL_FILE, Page, entry_of
from orchestrator.errors import ExportError

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]

FILE = "model.bin"


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


def test_another_models_file_fails_under_a_scheme_that_is_not_known_too(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"scheme int8-mine .* not known") as caught:
        judge(tmp_path, scores(), scores().argmax(1), -scores(), scheme="int8-mine")
    assert "int8-static" in caught.value.hint
