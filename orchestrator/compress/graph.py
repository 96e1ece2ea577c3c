"""What an ONNX file holds, read off its bytes: operators and weights by type. Standard library only.

The checking process must not need the tools that wrote the file, so the few fields of the protobuf format that matter
(onnx.proto: ModelProto.graph 7; GraphProto.node 1, initializer 5, output 12; NodeProto.input 1, output 2, op_type 4,
attribute 5, domain 7; AttributeProto.t 5, g 6, floats 7, tensors 10; TensorProto.dims 1, data_type 2, name 8,
raw_data 9, external location 13) are read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

_FLOAT = 1
_FLOATS = {1: 4, 10: 2, 11: 8, 16: 2}
_INTEGERS = {2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 21: 0.5, 22: 0.5}  # uint8 int8 uint16 int16 uint4 int4; not int32/64
_MIN_DEAD = 64
PLAIN_DOMAINS = ("", "ai.onnx", "com.microsoft")
INTEGER_OPERATORS = frozenset(
    (
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QLinearMul",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearSoftmax",
        "QLinearReduceMean",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "GatherBlockQuantized",
        "QAttention",
        "NhwcQLinearConv",
    )
)


@dataclass
class GraphFacts:
    """Operators by name, foreign domains, and how many numbers the weights hold as floats and as small integers."""

    operators: Counter[str] = field(default_factory=Counter)
    domains: set[str] = field(default_factory=set)
    float_values: int = 0
    integer_values: int = 0
    external: bool = False
    dead: list[str] = field(default_factory=list)
    """Weights of 64 numbers and more that no operator reads."""
    by_bits: Counter[int] = field(default_factory=Counter)
    """How many numbers the weights hold in 32, 16, 8 and 4 bits."""

    @property
    def coverage(self) -> float:
        """Share of the weights' numbers that are small integers."""
        return self.integer_values / max(1, self.integer_values + self.float_values)

    @property
    def integer_operators(self) -> int:
        """Operators that compute on integers."""
        return sum(count for name, count in self.operators.items() if name in INTEGER_OPERATORS)


def read_graph(content: bytes) -> GraphFacts:
    """Return the facts of an ONNX model. Raises ValueError when the bytes are none."""
    found = GraphFacts()
    for number, value in _fields(content):
        if number == 7 and isinstance(value, bytes):
            _read_graph(value, found)
    if not found.operators:
        raise ValueError("no graph with operators in it")
    return found


def float_payloads(content: bytes) -> list[tuple[int, int]]:
    """Return (begin, end) of the raw bytes of every float32 initializer (TensorProto.raw_data 9), in file order.

    Raises ValueError when the bytes are no ONNX model.
    """
    found: list[tuple[int, int]] = []
    for number, graph, base in _places(content, 0, len(content)):
        if number != 7:
            continue
        for part, tensor, at in _places(content, base, base + graph):
            if part == 5:
                found += _float_payload(content, at, at + tensor)
    return found


def _float_payload(content: bytes, begin: int, end: int) -> list[tuple[int, int]]:
    kinds = [value for number, value in _fields(content[begin:end]) if number == 2]
    places = [(at, at + size) for number, size, at in _places(content, begin, end) if number == 9]
    return places if kinds == [1] and len(places) == 1 else []


def _places(content: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, size, place) of every length-delimited field of the message between two places."""
    at = begin
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(content, at)
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(content, at)
        if size is None or at + size > end:
            raise ValueError("not a protobuf message")
        if kind == 2:
            yield key >> 3, size, at
        at += size


def _read_graph(content: bytes, found: GraphFacts) -> None:
    within = _Within()
    _read_parts(content, found, within)
    for name, kind, count in within.weights:
        _count(name, kind, count, within.packed, found)
    found.dead += sorted(name for name, _, count in within.weights if name not in within.used and count >= _MIN_DEAD)


@dataclass
class _Within:
    """What a graph, and those within it, read and hold: names, bits of weights of several a byte, weights."""

    used: set[str] = field(default_factory=set)
    packed: dict[str, int] = field(default_factory=dict)
    weights: list[tuple[str, int, int]] = field(default_factory=list)


def _read_parts(content: bytes, found: GraphFacts, within: _Within) -> None:
    for number, value in _fields(content):
        if number == 1 and isinstance(value, bytes):
            _read_node(value, found, within)
        elif number == 5 and isinstance(value, bytes):
            within.weights.append(_read_tensor(value, found))
        elif number == 12 and isinstance(value, bytes):  # a weight may be an output as it is
            within.used.add(_text(dict(_fields(value)).get(1, b"")))


def _count(name: str, kind: int, count: int, packed: dict[str, int], found: GraphFacts) -> None:
    """Add a weight's numbers by the bits that each takes; bytes of MatMulNBits hold several."""
    if kind in _FLOATS:
        found.float_values += count
        found.by_bits[8 * _FLOATS[kind]] += count
    elif kind in _INTEGERS:
        bits = packed.get(name, int(8 * _INTEGERS[kind]))
        numbers = count * 8 // bits if name in packed else count
        found.integer_values += numbers
        found.by_bits[bits] += numbers


def _read_node(content: bytes, found: GraphFacts, within: _Within) -> None:
    """Note a node's operator, every name it or a graph within it reads, and the numbers that its attributes hold."""
    fields = list(_fields(content))
    node = dict(fields)
    operator = _text(node.get(4, b""))
    found.operators[operator] += 1
    found.domains.add(_text(node.get(7, b"")))
    inputs = [_text(value) for number, value in fields if number == 1]
    within.used.update(inputs)
    if operator == "MatMulNBits":
        within.packed[inputs[1]] = _attribute(fields, "bits", 4)
    for number, attribute in fields:
        if number == 5 and isinstance(attribute, bytes):
            _read_attribute(attribute, _text(node.get(2, b"")), found, within)


def _read_attribute(content: bytes, output: str, found: GraphFacts, within: _Within) -> None:
    """Note the graphs of an attribute, and its tensors as weights by the name of the node's `output` (`Constant`)."""
    floats = 0
    for part, value in _fields(content):
        if not isinstance(value, bytes):
            continue
        if part == 6:
            _read_parts(value, found, within)
        elif part in (5, 10):
            _, kind, count = _read_tensor(value, found)
            within.weights.append((output, kind, count))
        elif part == 7:
            floats += len(value) // 4
    if floats:
        within.weights.append((output, _FLOAT, floats))


def _attribute(fields: list[tuple[int, int | bytes]], name: str, default: int) -> int:
    """Return a node's whole-number attribute (AttributeProto.name 1, i 3)."""
    for number, content in fields:
        if number == 5 and isinstance(content, bytes):
            attribute = dict(_fields(content))
            value = attribute.get(3, default)
            if _text(attribute.get(1, b"")) == name and isinstance(value, int):
                return value
    return default


def _read_tensor(content: bytes, found: GraphFacts) -> tuple[str, int, int]:
    """Return a weight's name, type, and how many numbers (or bytes of packed ones) it holds."""
    dims: list[int] = []
    kind, name = 0, ""
    for number, value in _fields(content):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 13:
            found.external = True
    return name, kind, prod(dims)


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _packed(content: bytes) -> list[int]:
    found, at = [], 0
    while at < len(content):
        value, at = _varint(content, at)
        found.append(value)
    return found


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(content, at)
        if size is None or at + size > len(content):
            raise ValueError("not a protobuf message")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("not a protobuf message")
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
