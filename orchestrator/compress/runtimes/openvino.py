"""OpenVINO models on a processor: numpy and the runtime are enough."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.compress.ir import IrFacts, read_ir
from orchestrator.compress.runtimes.base import require_integers
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Array, Run

XML, BIN = "model.xml", "model.bin"
_INTEGERS = frozenset(("u8", "i8", "u4", "i4", "u2", "i2"))
_MULTIPLYING = frozenset(("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"))
_READING = frozenset(("Gather",))


class OpenVino:
    """`model.xml`, the graph, and `model.bin`, all weights."""

    files: tuple[str, ...] = (XML, BIN)
    reference = "openvino"
    code: tuple[str, ...] = ()
    refused: tuple[str, ...] = ("torch", "torchvision", "onnx", "onnxruntime", "nncf")
    packages: tuple[str, ...] = ("openvino", "nncf", "onnx", "onnxscript")

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the model as a function of a batch."""
        compiled = _compile(contents, threads)

        def run(inputs_B: Array) -> Array:
            outputs: Array = compiled(inputs_B)[0]
            return outputs

        return run

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count operators and weights in the files, and integers in the graph as the runtime will really run it."""
        facts = read_ir(contents[XML], contents[BIN])
        _require_no_dead(facts)
        graph = _compile(contents).get_runtime_model()
        integer_operators = _integer_operators(graph, activations=page.scheme == "int8-static")
        if page.scheme != "fp32":
            require_integers(integer_operators, facts.coverage, page.scheme)
        return {
            "coverage": facts.coverage,
            "weights_by_bits": {str(bits): count for bits, count in sorted(facts.by_bits.items())},
            "integer_operators": integer_operators,
            "operators": dict(facts.operators.most_common()),
        }


RUNTIME = OpenVino()


def library() -> Any:
    """Return openvino, without its reports of usage. Raises NotAbleError when it is not installed.

    On import it tells its makers so; what it does so with is said not to be there.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise NotAbleError("openvino is not installed", hint='pip install "orchestrator[openvino]"') from error
    return openvino


def settings(threads: int = 1) -> dict[str, Any]:
    """Return how models are compiled: floats stay 32 bits wide, whatever else the processor has instructions for.

    Weights alone in integers: a linear layer's inputs are rounded to 8 bits by groups of 32, too, as OpenVINO does by
    default; it is written down here so that answers do not hang on the version.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }


def _compile(contents: Mapping[str, bytes], threads: int = 1) -> Any:
    core = library().Core()
    try:
        model = core.read_model(model=contents[XML], weights=contents[BIN])
        return core.compile_model(model, "CPU", settings(threads))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:  # OpenVINO raises RuntimeError for a bad file
        raise ExportError(
            f"{XML} cannot be run by OpenVINO alone: {str(error)[:300]}",
            hint="an artifact must not need its training code or files beside it",
        ) from error


def _require_no_dead(facts: IrFacts) -> None:
    if facts.dead:
        raise ExportError(
            f"{XML} carries weights that no operator reads: {', '.join(facts.dead[:3])}",
            hint="a converter has left the fp32 weights behind: they must be taken out",
        )
    if facts.dead_bytes:
        raise ExportError(
            f"{BIN} carries {facts.dead_bytes:,} bytes that no constant of the graph refers to",
            hint="a converter has left weights behind: they must be taken out",
        )


def _integer_operators(graph: Any, *, activations: bool) -> int:
    """Return how many operators of a compiled graph multiply, or read, small integers.

    `activations`: both sides of a product must be integers.
    """
    count = 0
    for node in graph.get_ordered_ops():
        facts = _facts(node)
        if facts.get("runtimePrecision") not in _INTEGERS:
            continue
        if facts["layerType"] in _MULTIPLYING:
            given = _facts(node.input(0).get_source_output().get_node()).get("outputPrecisions")
            count += not activations or given in _INTEGERS
        elif facts["layerType"] in _READING:
            count += not activations
    return count


def _facts(node: Any) -> dict[str, str]:
    found = node.get_rt_info()
    return {
        name: str(found[name].value) for name in ("layerType", "runtimePrecision", "outputPrecisions") if name in found
    }
