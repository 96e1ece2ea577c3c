"""Format `openvino`: a lean graph and its weights for OpenVINO, read from the ONNX graph of the same model.

Not from a `torch.export` program: OpenVINO knows fewer of its operators (none of mixtures of experts), and unrolls
what the ONNX graph has once.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from orchestrator.compress.ir import lean
from orchestrator.compress.runtimes.openvino import BIN, XML, library
from orchestrator.compress.writers.onnx import write_onnx
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.base import Context


def write(model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Write a model as `model.xml` and `model.bin`, fp32, its batch dim free. Raises ExportError, NotAbleError."""
    openvino = library()
    with TemporaryDirectory() as scratch:
        source = write_onnx(model, context, Path(scratch), opset)
        try:
            converted = openvino.convert_model(str(source))
        except Exception as error:  # OpenVINO's front ends raise kinds of their own that share no base
            raise ExportError(f"cannot be written for OpenVINO: {str(error)[:300]}") from error
    return save(converted, folder)


def save(model: Any, folder: Path) -> tuple[str, ...]:
    """Write OpenVINO's model in memory into `folder`; return the files' names. Floats stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    library().save_model(model, str(folder / XML), compress_to_fp16=False)
    (folder / XML).write_bytes(lean((folder / XML).read_bytes()))
    return (XML, BIN)
