"""What an OpenVINO file pair holds, read off the XML and the bytes it refers to. Standard library only.

The checking process must not need the tools that wrote the files. Nothing but elements and attributes is read: a
document type declaration, and with it every entity, is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder, tostring
from xml.parsers import expat

from orchestrator.errors import ExportError

_FLOATS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8e4m3": 8, "f8e5m2": 8, "f8e8m0": 8, "nf4": 4, "f4e2m1": 4}
_SMALL = {"u16": 16, "i16": 16, "u8": 8, "i8": 8, "u4": 4, "i4": 4, "u2": 2, "i2": 2}
_OTHERS = {"i32": 32, "u32": 32, "i64": 64, "u64": 64, "boolean": 8}
_BODIES = ("body", "then_body", "else_body")
_UNPACKING = ("Convert", "Reshape", "Subtract")
"""Operators between weights held as integers and the product with their scales."""
_MIN_DEAD = 64
_PER_SCALE = 8
"""Fewer integers than so many for a scale, and it is no scale but a weight."""


@dataclass(frozen=True)
class Constant:
    """A constant of the graph: what it holds and where in the bytes it lies."""

    layer: str
    name: str
    kind: str
    count: int
    begin: int
    end: int


@dataclass
class IrFacts:
    """Operators by name, numbers of the weights by bits, what nothing reads. Scales and zero points are no weights."""

    operators: Counter[str] = field(default_factory=Counter)
    by_bits: Counter[int] = field(default_factory=Counter)
    integer_values: int = 0
    float_values: int = 0
    dead: list[str] = field(default_factory=list)
    """Weights of 64 numbers and more that no answer depends on."""
    dead_bytes: int = 0
    """Bytes that no constant refers to, but for gaps shorter than 64."""

    @property
    def coverage(self) -> float:
        """Share of the weights' numbers that are small integers."""
        return self.integer_values / max(1, self.integer_values + self.float_values)


def parse(content: bytes) -> Element:
    """Return the root element. Raises ExportError when it is no XML, or declares a document type."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, AssertionError) as error:
        raise ExportError(f"model.xml is no OpenVINO model: {error}") from error


def _refuse(*declared: Any) -> None:
    raise ExportError("model.xml declares a document type, which no OpenVINO model has: entities are not resolved")


def read_ir(xml: bytes, weights: bytes) -> IrFacts:
    """Return the facts of a model. Raises ExportError when the XML is none, or a constant lies outside of the bytes."""
    found, taken = IrFacts(), [(0, 0)]
    for net in _nets(parse(xml)):
        _read_net(net, len(weights), found, taken)
    if not found.operators:
        raise ExportError("model.xml holds no operators")
    found.dead_bytes = _gaps(taken, len(weights))
    return found


def lean(xml: bytes) -> bytes:
    """Return the XML without what no runtime reads: names, notes, spaces, and shapes of inner values."""
    root = parse(xml)
    for notes in root.findall("rt_info"):
        root.remove(notes)
    for net in _nets(root):
        for layer in _layers(net):
            _lean(layer)
    return tostring(root).replace(b" />", b"/>")


def _lean(layer: Element) -> None:
    if layer.get("type") not in ("Parameter", "Result"):
        layer.set("name", layer.get("id", ""))
    for notes in layer.findall("rt_info"):
        layer.remove(notes)
    for side in ("input", "output"):
        for port in layer.findall(f"{side}/port"):
            port[:] = []
            if layer.get("type") != "Parameter":
                port.attrib.pop("names", None)
            if side == "input":
                port.attrib.pop("precision", None)


def _nets(root: Element) -> Iterator[Element]:
    """Yield the graph and every graph within it."""
    yield root
    for name in _BODIES:
        yield from root.iter(name)


def _layers(net: Element) -> list[Element]:
    found = net.find("layers")
    return [] if found is None else list(found)


def _read_net(net: Element, num_bytes: int, found: IrFacts, taken: list[tuple[int, int]]) -> None:
    """Add a graph's operators and weights; `taken` holds the places of constants that were counted before."""
    layers = {layer.get("id", ""): layer for layer in _layers(net)}
    kinds = {name: layer.get("type", "") for name, layer in layers.items()}
    found.operators.update(kind for kind in kinds.values() if kind != "Const")
    givers: dict[str, list[str]] = defaultdict(list)
    takers: dict[str, list[str]] = defaultdict(list)
    for edge in net.iterfind("edges/edge"):
        begin, end = edge.get("from-layer", ""), edge.get("to-layer", "")
        givers[end].append(begin)
        takers[begin].append(end)
    constants = [_constant(layer, num_bytes) for name, layer in layers.items() if kinds[name] == "Const"]
    read = _reached([name for name, kind in kinds.items() if kind in ("Result", "Assign")], givers)
    helpers = _helpers(constants, kinds, givers, takers)
    for each in constants:
        if each.layer not in read and each.count >= _MIN_DEAD and each.kind not in _OTHERS:
            found.dead.append(each.name)
        if (each.begin, each.end) not in taken:
            taken.append((each.begin, each.end))
            if each.layer not in helpers:
                _count(each, found)


def _count(each: Constant, found: IrFacts) -> None:
    if each.kind in _FLOATS:
        found.float_values += each.count
        found.by_bits[_FLOATS[each.kind]] += each.count
    elif each.kind in _SMALL:
        found.integer_values += each.count
        found.by_bits[_SMALL[each.kind]] += each.count


def _constant(layer: Element, num_bytes: int) -> Constant:
    """Return a constant. Raises ExportError when its size is not that of its numbers, or it lies outside of them."""
    name, data = layer.get("name", ""), layer.find("data")
    try:
        page = {} if data is None else data.attrib
        kind, begin, size = page["element_type"], int(page["offset"]), int(page["size"])
        count = prod(int(part) for part in page["shape"].split(",") if part.strip())
        bits = (_FLOATS | _SMALL | _OTHERS)[kind]
    except (KeyError, ValueError) as error:
        raise ExportError(f"model.xml: constant {name} cannot be read: {error}") from error
    if begin < 0 or begin + size > num_bytes:
        raise ExportError(
            f"model.xml: constant {name} lies outside of model.bin, which has {num_bytes:,} bytes",
            hint="weights in files beside are not counted by the page",
        )
    if size != -(-count * bits // 8):
        raise ExportError(f"model.xml: constant {name} takes {size} bytes, its {count} numbers of {kind} take others")
    return Constant(layer.get("id", ""), name, kind, count, begin, begin + size)


def _reached(starts: list[str], ways: dict[str, list[str]]) -> set[str]:
    """Return all that can be come to from `starts`, themselves included."""
    found, open_ends = set(starts), list(starts)
    while open_ends:
        for name in ways.get(open_ends.pop(), ()):
            if name not in found:
                found.add(name)
                open_ends.append(name)
    return found


def _helpers(
    constants: list[Constant], kinds: dict[str, str], givers: dict[str, list[str]], takers: dict[str, list[str]]
) -> set[str]:
    """Return scales and zero points: constants that turn integers, of which there are far more, back into floats."""
    by_layer = {each.layer: each for each in constants}
    found: set[str] = set()
    origin = partial(_origin, kinds=kinds, givers=givers)
    for each in (each for each in constants if each.kind in _SMALL):
        at = [each.layer]
        seen = set(at)
        while at:
            for name in takers.get(at.pop(), ()):
                if kinds[name] in ("Multiply", "Subtract"):
                    sides = [by_layer[side] for side in map(origin, givers[name]) if side in by_layer]
                    found |= {side.layer for side in sides if side.count * _PER_SCALE <= each.count}
                if kinds[name] in _UNPACKING and name not in seen:
                    seen.add(name)
                    at.append(name)
    return found


def _origin(name: str, kinds: dict[str, str], givers: dict[str, list[str]]) -> str:
    """Return the constant that a value is made of by conversions alone, else the value itself."""
    while kinds[name] in ("Convert", "Reshape") and givers[name]:
        name = givers[name][0]
    return name


def _gaps(taken: list[tuple[int, int]], num_bytes: int) -> int:
    """Return the bytes in gaps of 64 and more between the places that constants take."""
    total, reached = 0, 0
    for begin, end in [*sorted(taken), (num_bytes, num_bytes)]:
        if begin - reached >= _MIN_DEAD:
            total += begin - reached
        reached = max(reached, end)
    return total
