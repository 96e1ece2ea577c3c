"""`use: export`: the model in memory becomes an ONNX graph, without what no runtime reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.compress.base import EXPORTED, MODULE, Change, Context, State
from orchestrator.errors import ExportError


@dataclass(frozen=True)
class Config:
    """ONNX for ONNX Runtime: runs without torch and without the training code."""

    format: Literal["onnx"] = "onnx"
    opset: int | None = None


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, EXPORTED


def build(config: Config) -> Export:
    """Return the step."""
    return Export(config)


class Export:
    """Writes `model.onnx`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the graph, its batch dim free."""
        write_onnx(state.model, context, context.folder, self.config.opset)
        after = State(EXPORTED, state.model, state.masks, folder=context.folder, files=("model.onnx",), format="onnx")
        return Change(after)


def write_onnx(model: Any, context: Context, folder: Path, opset: int | None = None) -> Path:
    """Write a model as a lean `model.onnx` and return the path. Raises ExportError, NotAbleError."""
    from orchestrator.export.onnx import Config as OnnxConfig
    from orchestrator.export.onnx import OnnxExporter

    folder.mkdir(parents=True, exist_ok=True)
    inputs, _ = context.calibration()
    if len(inputs) < 2:
        raise ExportError("at least two calibration samples are needed", hint="raise compress.calibration.samples")
    (path,) = OnnxExporter(OnnxConfig(opset)).write(model, inputs[:2], folder)
    slim(path)
    return path


def slim(path: Path) -> None:
    """Take out of an ONNX file what no runtime reads: documentation, metadata, shapes of inner values."""
    import onnx

    proto = onnx.load(str(path))
    graph = proto.graph
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
    proto.doc_string = graph.doc_string = ""
    for holder in (graph.value_info, graph.metadata_props, proto.metadata_props):
        del holder[:]
    path.write_bytes(proto.SerializeToString())
