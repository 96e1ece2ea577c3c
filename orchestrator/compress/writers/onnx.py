"""Format `onnx`: a lean graph for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.base import Context

_WORTH_BYTES = 64


def write(model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Write a model as `model.onnx`, its batch dim free. Raises ExportError, NotAbleError."""
    return (write_onnx(model, context, folder, opset).name,)


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
    """Take out of an ONNX file what no runtime reads: documentation, metadata, shapes of inner values, copies."""
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
    keep_once(graph)
    path.write_bytes(proto.SerializeToString())


def keep_once(graph: Any) -> None:
    """Merge weights that are equal to the bit, in place: exporters and quantisers copy those of tied layers."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a graph within the graph reads names of this one
    fixed = {item.name for item in (*graph.input, *graph.output)}
    first: dict[tuple[Any, ...], str] = {}
    names: dict[str, str] = {}
    for item in graph.initializer:
        key = (item.data_type, tuple(item.dims), item.raw_data)
        if item.raw_data and len(item.raw_data) >= _WORTH_BYTES and item.name not in fixed:
            names[item.name] = first.setdefault(key, item.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    kept = [item for item in graph.initializer if names.get(item.name, item.name) == item.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
