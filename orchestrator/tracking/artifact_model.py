"""A compressed model as an MLflow model folder, in whatever way its format is served. Called by `tracking.model`.

Formats that MLflow has no flavour for are served by a python file of `tracking.served` stored beside their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress import runtimes
from orchestrator.compress.manifest import CHECK_FILE, Page, check_files, read_page
from orchestrator.errors import ExportError
from orchestrator.export.manifest import json_digest
from orchestrator.plan.capability import NEEDED
from orchestrator.tracking import served
from orchestrator.tracking.onnx_model import pack_onnx

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

EXAMPLE_ROWS = 2
SERVED: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino", "numpy"),
    "program": ("torch", "numpy"),
    "aoti": ("torch", "numpy"),
    "executorch": ("executorch", "torch", "numpy"),
}
"""Formats that `served/FORMAT.py` serves, and the distributions that it takes, in the versions of the page."""
_PACKERS: Mapping[str, Callable[..., Path]] = {"onnx": pack_onnx, "pack": pack_onnx}


def open_artifact(folder: Path) -> Page:
    """Return the page of a compressed model whose files are untouched and that passed its check. Raises ExportError."""
    page = read_page(folder)
    if page.checked is None:
        raise ExportError(f"{folder} was never checked", hint="compress again: `orchestrator compress RUN`")
    check_files(folder, page)
    return page


def packer_of(folder: Path) -> tuple[str, Callable[..., Path]]:
    """Return the digest of an artifact's files, and what makes an MLflow folder of it (scratch folder, ids).

    Raises ExportError when it is not whole, or MLflow cannot serve its format.
    """
    page = open_artifact(folder)
    digests = {name: entry.sha256 for name, entry in page.needed.items()}
    digest = next(iter(digests.values())) if len(digests) == 1 else json_digest(digests)
    if page.format in SERVED:
        return digest[:16], partial(_pack_served, folder, page)
    if page.format not in _PACKERS:
        hint = "its files are among the run's artifacts"
        raise ExportError(f"MLflow has nothing that serves the format {page.format}", hint=hint)
    example, signature = _example(folder), signature_of(page)
    return digest[:16], partial(_PACKERS[page.format], folder, page, example, signature)


def _pack_served(
    folder: Path, page: Page, scratch: Path, *, run_id: str = "", model_id: str = "", place: str = ""
) -> Path:
    """Write an MLflow model folder under `scratch`: the artifact's files, and the python file that serves them."""
    import mlflow.pyfunc
    from mlflow.models import Model

    packed = scratch / "model"
    code = Path(served.__file__).with_name(f"{page.format}.py")
    digests = {name: entry.sha256 for name, entry in page.needed.items()}
    mlflow.pyfunc.save_model(
        str(packed),
        python_model=str(code),
        artifacts={name: str(folder / name) for name in page.needed},
        model_config={
            "sha256": digests,
            "dtype": page.inputs["dtype"],
            "scheme": page.scheme,
            "capability": NEEDED[page.scheme].capability if page.target == "cuda" else None,
        },
        code_paths=[str(Path(runtimes.__file__).with_name("two_of_four.py"))] if page.scheme == "2:4" else None,
        signature=signature_of(page),
        input_example=_example(folder),
        pip_requirements=[f"{name}=={page.versions[name].split('+')[0]}" for name in SERVED[page.format]],
        metadata={"scheme": page.scheme, "format": page.format},
        mlflow_model=Model(artifact_path=place or None, run_id=run_id or None, model_id=model_id or None),
    )
    return packed


def signature_of(page: Page) -> ModelSignature:
    """Return what goes in and comes out, as MLflow says it."""
    import numpy
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    sides = [TensorSpec(numpy.dtype(side["dtype"]), _sizes(side)) for side in (page.inputs, page.outputs)]
    return ModelSignature(inputs=Schema([sides[0]]), outputs=Schema([sides[1]]))


def _example(folder: Path) -> Any:
    import numpy

    with numpy.load(folder.parent / CHECK_FILE, allow_pickle=False) as file:
        return file["inputs"][:EXAMPLE_ROWS]


def _sizes(side: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(-1 if size is None else int(size) for size in side["shape"])
