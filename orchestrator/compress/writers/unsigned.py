"""Signed integer weights that several nodes of an ONNX graph read, made unsigned: the same numbers, 128 higher.

ONNX Runtime does that itself for x86 without VNNI (`session.x64quantprecision`), node by node, and cannot open a graph
in which a second node reads what it has changed already ("Attempt to replace the existing tensor", seen with 1.32).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

# Which inputs of an operator are weights and their zero points, which must have one type.
_PLACES = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3), "ConvInteger": (1, 3)}
_SHIFT = 128


def unsign_shared(path: Path) -> None:
    """Change the file in place. Numbers stay what they are; weights that one node reads are left alone."""
    import onnx

    proto = onnx.load(str(path))
    graph = proto.graph
    shared = _shared(graph)
    if not shared:
        return
    weights = {item.name: item for item in graph.initializer}
    made: dict[bytes, str] = {}
    for node in graph.node:
        weight, zero = _PLACES.get(node.op_type, (0, 0))
        if node.op_type not in _PLACES or node.input[weight] not in shared:
            continue
        given = weights.get(node.input[zero]) if len(node.input) > zero and node.input[zero] else None
        shape = given if given is not None else weights[node.input[1]]  # the scales' shape; their zero point is 0
        raised = _raised(onnx, given, shape)
        name = made.setdefault(raised.SerializeToString(), f"unsigned_zero_{len(made)}")
        node.input[:] = [*node.input, *[""] * (zero + 1 - len(node.input))]
        node.input[zero] = name
    for name in shared:
        weights[name].CopyFrom(_raised(onnx, weights[name], weights[name], name))
    for content, name in made.items():
        tensor = onnx.TensorProto.FromString(content)
        tensor.name = name
        graph.initializer.append(tensor)
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    path.write_bytes(proto.SerializeToString())


def _shared(graph: Any) -> set[str]:
    """Return the signed weights that more than one node computes with, itself or by the floats made of them."""
    from onnx import TensorProto

    signed = {item.name for item in graph.initializer if item.data_type == TensorProto.INT8}
    readers = Counter(name for node in graph.node for name in node.input)
    found: Counter[str] = Counter()
    foreign = set()
    for node in graph.node:
        place, zero = _PLACES.get(node.op_type, (-1, -1))
        for at, name in enumerate(node.input):
            if name not in signed or at == zero:
                continue
            if at != place:
                foreign.add(name)  # an operator whose zero points are not known here
            found[name] += readers[node.output[0]] if node.op_type == "DequantizeLinear" else 1
    return {name for name, count in found.items() if count > 1} - foreign


def _raised(onnx: Any, tensor: Any, shape: Any, name: str = "") -> Any:
    """Return a signed tensor as an unsigned one, 128 higher; None stands for zeros of a shape."""
    import numpy as np

    held = onnx.numpy_helper.to_array(shape)
    values = np.zeros(held.shape, np.int16) if tensor is None else held.astype(np.int16)
    return onnx.numpy_helper.from_array((values + _SHIFT).astype(np.uint8), name)
