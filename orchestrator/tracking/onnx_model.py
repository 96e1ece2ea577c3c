"""A compressed model as an MLflow model folder of the onnx flavour: runs in ONNX Runtime, unpickles nothing.

An archive is registered as the graph it restores, since storage formats have no flavour; the archive itself is among
the run's artifacts. Called by `tracking.artifact_model` in the sender's process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.manifest import Page
from orchestrator.compress.runtimes.base import read_files
from orchestrator.compress.runtimes.onnx import SESSION_CONFIG
from orchestrator.compress.runtimes.pack import restore

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def pack_onnx(
    folder: Path,
    page: Page,
    example: Any,
    signature: ModelSignature,
    scratch: Path,
    *,
    run_id: str = "",
    model_id: str = "",
    place: str = "",
) -> Path:
    """Write an MLflow model folder under `scratch` from an artifact folder and return it."""
    import mlflow.onnx
    import onnx
    from mlflow.models import Model

    packed = scratch / "model"
    contents = read_files(folder, page.needed)
    (graph,) = (restore(contents) if page.format == "pack" else contents).values()
    (entry,) = page.needed.values()
    mlflow.onnx.save_model(
        onnx.load_from_string(graph),
        str(packed),
        signature=signature,
        input_example=example,
        pip_requirements=[f"{name}=={page.versions[name]}" for name in ("onnx", "onnxruntime", "numpy")],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"extra_session_config": dict(SESSION_CONFIG)},
        save_as_external_data=False,
        metadata={"scheme": page.scheme, "format": page.format, "file_sha256": entry.sha256},
        mlflow_model=Model(artifact_path=place or None, run_id=run_id or None, model_id=model_id or None),
    )
    return packed
