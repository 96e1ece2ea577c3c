"""Exporter `onnx`: one `model.onnx` with a free batch dim, checked; ONNX Runtime runs it without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError, NotAbleError
from orchestrator.export.base import Tolerance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.export.base import Array

ONNX_FILE = "model.onnx"
_MAX_INLINE_BYTES = 1_900_000_000  # one protobuf message holds 2 GiB; above it weights would need a second file


@dataclass(frozen=True)
class Config:
    """Options of the exporter."""

    opset: int | None = None
    """Operator set; absent: the one the exporter of this torch version prefers."""


def build(config: Config) -> OnnxExporter:
    """Return the exporter."""
    return OnnxExporter(config)


class OnnxExporter:
    """Writes `model.onnx` with input `inputs` and output `outputs`, batch dim `batch`."""

    tolerance = Tolerance(relative=1e-4)

    def __init__(self, config: Config) -> None:
        self.config = config

    def write(self, model: nn.Module, example_inputs: Tensor, folder: Path) -> list[Path]:
        """Trace, translate, check. Raises NotAbleError when the extra is not installed."""
        onnx = _need("onnx")
        _need("onnxscript")
        path = folder / ONNX_FILE
        proto = _name_batch_dim(self._translate(model, example_inputs))
        if proto.ByteSize() > _MAX_INLINE_BYTES:
            raise ExportError(f"the model takes {proto.ByteSize()} bytes, one ONNX file holds {_MAX_INLINE_BYTES}")
        path.write_bytes(proto.SerializeToString())
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the ONNX checker refuses the file: {error}") from error
        return [path]

    def load(self, folder: Path) -> Callable[[Tensor], Tensor]:
        """Return the model in ONNX Runtime, one thread, as a function of tensors."""
        import torch

        run_arrays = self.load_arrays(folder)

        def run(inputs_B: Tensor) -> Tensor:
            return torch.from_numpy(run_arrays(inputs_B.contiguous().numpy()))

        return run

    def load_arrays(self, folder: Path) -> Callable[[Array], Array]:
        """Return the model in ONNX Runtime, one thread, as a function of NumPy arrays; torch is not imported."""
        runtime = _need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        path = folder / ONNX_FILE
        try:
            session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own error classes share no base but Exception
            raise ExportError(f"{path} cannot be loaded: {str(error)[:300]}") from error
        name = session.get_inputs()[0].name

        def run(inputs_B: Array) -> Array:
            outputs: Array = session.run(None, {name: inputs_B})[0]
            return outputs

        return run

    def versions(self) -> Mapping[str, str]:
        """Return versions of what wrote and what runs the file."""
        return {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}

    def _translate(self, model: nn.Module, example_inputs: Tensor) -> Any:
        import torch

        from orchestrator.export.trace import first_lines, traces

        program = traces.trace(model, example_inputs)
        # Says on every use which operators of torchvision it does not know; nothing a user could act on.
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                translated = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    opset_version=self.config.opset,
                    input_names=["inputs"],
                    output_names=["outputs"],
                    custom_translation_table={torch.ops.aten.sort.stable: _sort_stable},
                )
        except Exception as error:  # the translator raises its own and its passes' kinds, none public
            raise ExportError(f"cannot be written as ONNX: {first_lines(error)}") from error
        return translated.model_proto if translated is not None else None


def _sort_stable(self: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
    """Translate a stable sort, which torch's table lacks: TopK of all, where the lower of equal places comes first."""
    from onnxscript import opset18 as op

    everything = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
    return op.TopK(self, everything, axis=dim, largest=int(descending), sorted=1)


def _need(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise NotAbleError(
            f"the onnx format needs the package {package}, which is not installed",
            hint='pip install "orchestrator[onnx]"',
        ) from error


def _name_batch_dim(proto: Any) -> Any:
    """Rename the tracer's symbol of the batch dim (`s31`) to `batch` wherever a shape says it."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        raise ExportError("the traced model fixed its batch size", hint="its forward must not depend on the batch size")
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"
    return proto
