"""Reads DCP's `.metadata`, a pickle, without trusting it: exact allow-list, stand-in classes, everything rebuilt.

Called by the loader after the file's hash verified. A hash proves that the file is the one saved, not who saved it, so
the bytes are treated as hostile all the same: nothing but the names in `_Unpickler.find_class` can be named, what they
name are inert stand-ins of this module, and torch's own objects are made afresh from checked fields.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo  # what FileSystemReader.read_data reads back
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from orchestrator.errors import CheckpointError

_DCP = "torch.distributed.checkpoint."
_RECORDS = {
    (_DCP + "metadata", "Metadata"),
    (_DCP + "metadata", "TensorStorageMetadata"),
    (_DCP + "metadata", "BytesStorageMetadata"),
    (_DCP + "metadata", "TensorProperties"),
    (_DCP + "metadata", "ChunkStorageMetadata"),
    (_DCP + "metadata", "MetadataIndex"),
    (_DCP + "metadata", "StorageMeta"),
    (_DCP + "filesystem", "_StorageInfo"),
}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.bool, torch.complex64, torch.complex128),
    )
}
_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "STACK_GLOBAL", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD"),
    )
)
"""What an honest file uses. No INST, OBJ, EXT, PERSID, NEWOBJ_EX, buffers or byte strings."""
_MAX_DIMS = 64


class _Stub:
    """Stands in for one allow-listed class while unpickling; keeps the state it is given and does nothing."""

    kind = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Resolves allow-listed names to stand-ins made for this one load, so that no payload can reach a real class."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._stubs = {key: type("_Stub", (_Stub,), {"kind": key[1]}) for key in _RECORDS}

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what an allow-listed name stands for. Raises CheckpointError for any other."""
        if (module, name) in self._stubs:
            return self._stubs[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return _inert("size")
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _inert("layout")
        if (module, name) == (_DCP + "metadata", "_MEM_FORMAT_ENCODING"):
            return _inert("memory_format")
        raise CheckpointError(f".metadata names {module[:60]}.{name[:60]}, which no honest checkpoint holds")

    def persistent_load(self, pid: Any, /) -> Any:
        """Refuse."""
        raise CheckpointError(".metadata refers to an object outside itself")


def _inert(tag: str) -> Callable[..., tuple[str, tuple[Any, ...]]]:
    """Return a new function that only remembers its arguments: what a payload does to it touches nothing else."""
    return lambda *arguments: (tag, arguments)


def parse_metadata(data: bytes, files: Collection[str], total_bytes: int) -> Metadata:
    """Return DCP metadata rebuilt from the bytes of `.metadata`.

    `files` are the names that the manifest lists: data may lie in no other. `total_bytes` is their size together: no
    tensor may claim more. Raises CheckpointError for anything an honest save of tensors does not contain.
    """
    _check_opcodes(data)
    try:
        raw = _Unpickler(data).load()
    except CheckpointError:
        raise
    except Exception as error:  # hostile bytes can make the unpickler raise anything at all
        raise CheckpointError(f".metadata cannot be read: {type(error).__name__}: {error}") from error
    fields = _fields(raw, "Metadata")
    entries = _mapping(fields.get("state_dict_metadata"), "state_dict_metadata")
    tensors = {_text(key): _tensor(_text(key), value, total_bytes) for key, value in entries.items()}
    if sum(_bytes_of(tensor) for tensor in tensors.values()) > total_bytes:
        raise CheckpointError(f".metadata describes more data than the {total_bytes} bytes that were saved")
    storage = dict(
        _location(index, info, tensors, files)
        for index, info in _mapping(fields.get("storage_data"), "storage_data").items()
    )
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            if MetadataIndex(name, chunk.offsets) not in storage:
                raise CheckpointError(f".metadata does not say where {name} at {list(chunk.offsets)} lies")
    return Metadata(state_dict_metadata=dict(tensors), storage_data=storage, storage_meta=StorageMeta())


def _check_opcodes(data: bytes) -> None:
    """Refuse instructions that honest files do not use, before any of them runs."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise CheckpointError(f".metadata uses the pickle instruction {opcode.name}, no honest checkpoint does")
            if opcode.name == "LONG_BINPUT" and (argument or 0) > len(data):
                raise CheckpointError(".metadata asks for a memory table larger than itself")
    except CheckpointError:
        raise
    except Exception as error:  # genops raises many kinds on bytes that are no pickle
        raise CheckpointError(f".metadata is not a pickle: {type(error).__name__}: {error}") from error


def _tensor(name: str, value: Any, total_bytes: int) -> TensorStorageMetadata:
    if getattr(type(value), "kind", "") == "BytesStorageMetadata":
        raise CheckpointError(f".metadata lists {name} as a pickled object; checkpoints hold tensors only")
    fields = _fields(value, "TensorStorageMetadata")
    size = _size(fields.get("size"), total_bytes)
    properties = _properties(fields.get("properties"))
    chunks = [_chunk(name, size, chunk) for chunk in _sequence(fields.get("chunks"), "chunks")]
    return TensorStorageMetadata(properties=properties, size=size, chunks=chunks)


def _properties(value: Any) -> TensorProperties:
    if getattr(type(value), "kind", "") != "TensorProperties" or not isinstance(value.state, tuple):
        raise CheckpointError(".metadata has a tensor without properties")
    state = value.state
    if len(state) != 5 or not isinstance(state[0], torch.dtype) or state[1] != ("layout", ("torch.strided",)):
        raise CheckpointError(".metadata has a tensor that is not a plain strided one")
    return TensorProperties(dtype=state[0])


def _chunk(name: str, size: torch.Size, value: Any) -> ChunkStorageMetadata:
    fields = _fields(value, "ChunkStorageMetadata")
    limit = max((*size, 0))
    offsets, sizes = _size(fields.get("offsets"), limit), _size(fields.get("sizes"), limit)
    inside = len(offsets) == len(sizes) == len(size)
    if not inside or any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
        raise CheckpointError(f".metadata has a piece of {name} outside the tensor's bounds")
    return ChunkStorageMetadata(offsets=offsets, sizes=sizes)


def _location(
    index: Any, info: Any, tensors: dict[str, TensorStorageMetadata], files: Collection[str]
) -> tuple[MetadataIndex, _StorageInfo]:
    place, where = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
    name, path = _text(place.get("fqn")), _text(where.get("relative_path"))
    if name not in tensors:
        raise CheckpointError(f".metadata places {name[:80]!r}, which it does not describe")
    if path not in files:
        raise CheckpointError(f".metadata points to {path[:80]!r}, which is not a file of this checkpoint")
    if where.get("transform_descriptors") is not None:
        raise CheckpointError(".metadata asks for a stream transformation")
    offset = _size(place.get("offset"), max((*tensors[name].size, 0)))
    hint = place.get("index")
    return (
        MetadataIndex(name, offset, hint if type(hint) is int else None),
        _StorageInfo(path, _count(where.get("offset")), _count(where.get("length"))),
    )


def _bytes_of(tensor: TensorStorageMetadata) -> int:
    return math.prod(tensor.size) * tensor.properties.dtype.itemsize


def _fields(value: Any, kind: str) -> dict[str, Any]:
    if getattr(type(value), "kind", "") != kind or not isinstance(value.state, dict):
        raise CheckpointError(f".metadata holds no {kind} where one belongs")
    return value.state


def _mapping(value: Any, what: str) -> dict[Any, Any]:
    if type(value) is not dict:
        raise CheckpointError(f".metadata has no table {what}")
    return value


def _sequence(value: Any, what: str) -> list[Any]:
    if type(value) is not list:
        raise CheckpointError(f".metadata has no list {what}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise CheckpointError(".metadata has something else where a name belongs")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CheckpointError(".metadata has a negative or impossible place in a file")
    return value


def _size(value: Any, limit: int) -> torch.Size:
    """Return a shape or offset whose every entry is between 0 and `limit`."""
    match value:
        case ("size", (tuple() as numbers,)) if len(numbers) <= _MAX_DIMS:
            if all(type(number) is int and 0 <= number <= limit for number in numbers):
                return torch.Size(numbers)
    raise CheckpointError(".metadata has a shape with impossible numbers")
