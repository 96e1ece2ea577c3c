"""ExecuTorch programs through `executorch.runtime`; what XNNPACK is given is read off the file."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.runtimes.base import require_integers
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Array, Run

FILE = "model.pte"
_HINT = 'pip install "orchestrator[executorch]"'
_SCHEMA = "backends/xnnpack/serialization/runtime_schema.fbs"
_BITS = {"fp32": 32, "fp16": 16, "qint8": 8, "quint8": 8, "qcint8": 8, "qcint4": 4, "qbint4": 4}
_SMALL = ("qint8", "quint8", "qcint8", "qdint8", "qcint4", "qbint4")
_MULTIPLYING = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected", "XNNBatchMatrixMultiply")
_SIDES = ("input1_id", "input_id", "input2_id", "filter_id", "output_id")


class ExecuTorch:
    """One `model.pte`, all weights in it. A batch larger than its memory is planned for is answered in parts."""

    files: tuple[str, ...] = (FILE,)
    reference = "executorch"
    code: tuple[str, ...] = ()
    refused: tuple[str, ...] = ("torchao", "torchvision", "onnx", "onnxruntime")
    packages: tuple[str, ...] = ("executorch", "torch", "torchao")

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the model as a function of a batch. Sets the number of threads of the runtime's one pool."""
        try:
            from executorch.extension.pybindings import portable_lib as pool
            from executorch.runtime import Runtime
        except ImportError as error:
            raise NotAbleError(f"executorch cannot be imported: {error}", hint=_HINT) from error
        (name, content), *_ = contents.items()
        if pool._threadpool_get_thread_count() != threads:  # models that were opened before must not be run again
            pool._unsafe_reset_threadpool(threads)
        try:
            program = Runtime.get().load_program(content)
            method = program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{name} cannot be run by ExecuTorch alone: {str(error)[:300]}") from error
        if method is None:
            raise ExportError(f"{name} has no method `forward`")
        return _run_of(program, method)

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count weights by type, and layers that multiply integers, in what the file gives XNNPACK, and outside."""
        (name, content), *_ = contents.items()
        facts = read_program(name, content)
        if facts.dead:
            raise ExportError(f"{name} carries weights that no operator reads: {', '.join(facts.dead[:3])}")
        coverage = facts.integers / max(1, sum(facts.bits.values()))
        if page.scheme != "fp32":
            require_integers(facts.integer_operators, coverage, page.scheme)
        return {
            "coverage": coverage,
            "weights_by_bits": dict(sorted(facts.bits.items())),
            "integer_operators": facts.integer_operators,
            "operators": dict(facts.operators.most_common()),
        }


RUNTIME = ExecuTorch()


class Facts:
    """What a program holds: numbers of the weights by bits, operators, layers on integers, weights nothing reads."""

    def __init__(self) -> None:
        self.bits: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.integers = 0
        self.integer_operators = 0
        self.dead: list[str] = []


def _run_of(program: Any, method: Any) -> Run:
    """Return the method as a function of a batch; it reads what the program holds, which must live as long."""
    import numpy
    import torch

    most = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(inputs_B: Array, held: Any = program) -> Array:
        parts = [inputs_B[at : at + most] for at in range(0, len(inputs_B), most)]
        answers = [method.execute([torch.from_numpy(numpy.ascontiguousarray(part))])[0].clone() for part in parts]
        outputs: Array = torch.cat(answers).numpy()
        return outputs

    return run


def read_program(name: str, content: bytes) -> Facts:
    """Return the facts of a program. Raises ExportError when it cannot be read, or another backend is in it."""
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise NotAbleError(f"executorch cannot be imported: {error}", hint=_HINT) from error
    logging.getLogger("executorch").setLevel(logging.ERROR)
    try:
        file = deserialize_pte_binary(content)
        (plan,) = file.program.execution_plan
        payloads = [_payload(file.program, delegate) for delegate in plan.delegates]
    except Exception as error:  # a damaged flatbuffer surfaces as anything from struct.error to IndexError
        raise ExportError(f"{name} is no ExecuTorch program: {type(error).__name__}: {error}") from error
    found, named = Facts(), set(file.named_data.pte_data) if file.named_data else set()
    found.operators.update(operator.name for operator in plan.operators)
    outside = sum(len(buffer.storage) for buffer in file.program.constant_buffer)
    found.bits["32"] += outside // 4  # kept for operators outside of XNNPACK
    for payload in payloads:
        named -= set(_read_graph(name, payload, found))
    found.dead += sorted(named)
    return found


def _payload(program: Any, delegate: Any) -> bytes:
    if delegate.id != "XnnpackBackend":
        raise ValueError(f"it computes in {delegate.id}, which cannot be looked into")
    return bytes(program.backend_delegate_data[delegate.processed.index].data)


def _read_graph(name: str, payload: bytes, found: Facts) -> Iterator[str]:
    """Add a graph of XNNPACK's to the facts; yield the names of the weights that its operators read."""
    graph = _decode(name, payload)
    values = {}
    for each in graph["xvalues"]:
        value = each["xvalue_union"]
        scale = value.get("quant_params", {}).get("scale_buffer_idx", 0)
        value = value.get("tensor_value", value)
        values[value["id_out"]] = (value["datatype"].removeprefix("xnn_datatype_"), value, scale)
    read: set[int] = set()
    for node in graph["xnodes"]:
        kind, union = node["xnode_union_type"], node["xnode_union"]
        found.operators[kind] += 1
        sides = {side: values[union[side]][0] for side in _SIDES if union.get(side) in values}
        if kind in _MULTIPLYING and all(sort in _SMALL for sort in sides.values()):
            found.integer_operators += 1
        read |= {number for key, number in union.items() if key.endswith("_id") and number in values}
    keys = [entry["named_key"] for entry in graph["constant_data"]]
    for number in read:
        sort, value, scale = values[number]
        if value["constant_buffer_idx"]:
            yield keys[value["constant_buffer_idx"]]
            _count(sort, value["dims"], found)
        if scale:
            yield keys[scale]


def _count(sort: str, dims: list[int], found: Facts) -> None:
    size = 1
    for dim in dims:
        size *= dim
    if sort in _BITS:  # else a bias in 32-bit integers
        found.bits[str(_BITS[sort])] += size
        found.integers += size if sort in _SMALL else 0


def _decode(name: str, payload: bytes) -> dict[str, Any]:
    """Return the graph in what a delegate is given. Raises ExportError when it has another form."""
    import executorch
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    if payload[4:8] != b"XH00":
        raise ExportError(f"{name}: what XNNPACK is given has no header that is known here")
    begin, size = (int.from_bytes(payload[at : at + 4], "little") for at in (10, 14))
    schema = next(path for root in executorch.__path__ if (path := Path(root) / _SCHEMA).is_file())
    with tempfile.TemporaryDirectory(prefix="orchestrator-pte-") as scratch:
        file = Path(scratch) / "graph.bin"
        file.write_bytes(payload[begin : begin + size])
        _flatc_decompile(scratch, str(schema), str(file), ["--raw-binary"])
        text = (Path(scratch) / "graph.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(re.sub(r"(?<=: )\+?(-?)inf\b", r"\1Infinity", text))
    return found
