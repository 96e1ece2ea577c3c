"""A compressed model as an MLflow model folder of the onnx flavour: runs in ONNX Runtime, unpickles nothing.

An archive is registered as the graph it restores, since storage formats have no flavour; the archive itself is among
the run's artifacts. Called by `tracking.model` in the sender's process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.compress.manifest import CHECK_FILE, Page, check_files, read_page
from orchestrator.compress.runtimes.base import read_files
from orchestrator.compress.runtimes.pack import restore
from orchestrator.errors import ExportError

EXAMPLE_ROWS = 2


def open_artifact(folder: Path) -> Page:
    """Return the page of a compressed model whose files are untouched and that passed its check. Raises ExportError."""
    page = read_page(folder)
    if page.checked is None:
        raise ExportError(f"{folder} was never checked", hint="compress again: `orchestrator compress RUN`")
    check_files(folder, page)
    return page


def pack_onnx(folder: Path, scratch: Path, *, run_id: str = "", model_id: str = "", place: str = "") -> Path:
    """Write an MLflow model folder under `scratch` from an artifact folder and return it."""
    import mlflow.onnx
    import numpy
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    page, packed = open_artifact(folder), scratch / "model"
    contents = read_files(folder, page.needed)
    (graph,) = (restore(contents) if page.format == "pack" else contents).values()
    (entry,) = page.needed.values()
    with numpy.load(folder.parent / CHECK_FILE, allow_pickle=False) as file:
        example = file["inputs"][:EXAMPLE_ROWS]
    specs = [TensorSpec(numpy.dtype(side["dtype"]), _sizes(side)) for side in (page.inputs, page.outputs)]
    mlflow.onnx.save_model(
        onnx.load_from_string(graph),
        str(packed),
        signature=ModelSignature(inputs=Schema([specs[0]]), outputs=Schema([specs[1]])),
        input_example=example,
        pip_requirements=[f"{name}=={page.versions[name]}" for name in ("onnx", "onnxruntime", "numpy")],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
        metadata={"scheme": page.scheme, "format": page.format, "file_sha256": entry.sha256},
        mlflow_model=Model(artifact_path=place or None, run_id=run_id or None, model_id=model_id or None),
    )
    return packed


def _sizes(side: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(-1 if size is None else int(size) for size in side["shape"])
