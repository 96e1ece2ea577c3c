"""`use: export`: the model in memory becomes an ONNX graph, without what no runtime reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.compress.base import EXPORTED, MODULE, Change, Context, State
from orchestrator.errors import ExportError

_WORTH_BYTES = 64


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
