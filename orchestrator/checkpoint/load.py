"""Loads a committed checkpoint into a live state of any layout, or as full tensors in one process.

Everything is verified first (size and SHA-256 of every file), and nothing is unpickled but `.metadata`, by
`checkpoint.metadata`; tensors are read by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from orchestrator.checkpoint.disk import open_regular
from orchestrator.checkpoint.group import Group
from orchestrator.checkpoint.manifest import CheckpointMeta, CheckpointRef, Json
from orchestrator.checkpoint.metadata import parse_metadata
from orchestrator.checkpoint.staging import SEPARATOR, Leaf, iterate_leaves
from orchestrator.checkpoint.verify import read_verified, verify_files
from orchestrator.errors import CheckpointError

METADATA = ".metadata"
# DCP warns at every call that it works without a process group: in a process of its own that is what is meant. Set once
# per process, not around each call, because filters are shared by threads and saves run in one of their own.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
_SHOWN = 5


def load_into(
    ref: CheckpointRef, state: dict[str, Any], *, group: Group | None = None, partial: bool = False
) -> CheckpointMeta:
    """Load a checkpoint into `state` in place and return its meta. Collective.

    `state` has the shape it was saved with (names and full tensor shapes), under any layout: plain tensors or DTensors
    on any mesh. It may leave out whole sections (`{"model": ...}` alone loads the weights). Leaves that are no tensors
    are replaced in their dict or list. `partial`: this rank holds only a part of each section (a pipeline's stages).
    Each rank hashes its share of the files first.
    Raises CheckpointError on every rank when a file is damaged or the names, shapes or dtypes differ.
    """
    group = group or Group.default()
    leaves = {leaf.path: leaf for leaf in iterate_leaves(state)}

    parsed: list[Metadata] = []

    def check() -> None:
        verify_files(ref.path, ref.manifest, ref.manifest.files[group.rank :: group.world_size])
        parsed.append(read_metadata(ref))
        _match(ref, parsed[0], leaves, partial=partial)

    group.agree(f"checking {ref.path}", check)
    tensors = {path: leaf.value for path, leaf in leaves.items() if isinstance(leaf.value, torch.Tensor)}
    group.agree(f"loading {ref.path}", lambda: _read(ref, parsed[0], tensors, group))
    for path, leaf in leaves.items():
        if path not in tensors:
            leaf.parent[leaf.key] = _like(leaf.value, ref.manifest.values[path])
    return ref.meta


def load_consolidated(ref: CheckpointRef) -> tuple[dict[str, torch.Tensor], CheckpointMeta]:
    """Return (model weights by name as full CPU tensors, meta), in this process alone. Not collective.

    Raises CheckpointError when a file is damaged.
    """
    group = Group(None)
    verify_files(ref.path, ref.manifest)
    metadata = read_metadata(ref)
    prefix = f"model{SEPARATOR}"
    tensors = {
        name: torch.empty(info.size, dtype=info.properties.dtype)
        for name, info in metadata.state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(info, TensorStorageMetadata)
    }
    group.agree(f"loading {ref.path}", lambda: _read(ref, metadata, tensors, group))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, ref.meta


def read_metadata(ref: CheckpointRef) -> Metadata:
    """Return DCP's metadata from the very bytes whose hash was compared. Raises CheckpointError."""
    data = read_verified(ref.path, ref.manifest.entry(METADATA))
    shards = {one.name for one in ref.manifest.files if one.name.endswith(".distcp")}
    return parse_metadata(data, shards, ref.manifest.total_bytes)


class _Files(FileSystem):
    """Opens regular files for reading only: no link is followed, nothing is written."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[IO[bytes], None, None]:  # type: ignore[override]
        """Open `path`; any mode but reading raises CheckpointError."""
        if mode != "rb":
            raise CheckpointError(f"a loader asked to open {path} with mode {mode}")
        with open_regular(Path(path)) as handle:
            yield handle


class _Reader(FileSystemReader):
    """DCP's reader with metadata that was parsed beforehand; it never sees the pickle."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self.fs = _Files()
        self._parsed = metadata

    def read_metadata(self) -> Metadata:
        """Return the parsed metadata."""
        return self._parsed


def _read(ref: CheckpointRef, metadata: Metadata, tensors: dict[str, torch.Tensor], group: Group) -> None:
    load(
        dict(tensors),
        storage_reader=_Reader(ref.path, metadata),
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=group.process_group,
        no_dist=group.process_group is None,
    )


def _match(ref: CheckpointRef, metadata: Metadata, leaves: dict[str, Leaf], *, partial: bool) -> None:
    """Refuse a state whose names, shapes or dtypes are not those of the checkpoint."""
    saved = metadata.state_dict_metadata
    sections = {path.split(SEPARATOR)[0] for path in leaves}
    known = {path for path in (*saved, *ref.manifest.values) if path.split(SEPARATOR)[0] in sections}
    missing, unknown = sorted(leaves.keys() - known), [] if partial else sorted(known - leaves.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{ref.path} was saved from another model or optimiser: {_listing('it lacks', missing)}"
            f"{_listing('the job lacks', unknown)}",
            hint="Resume with the job that made it, or start a new run.",
        )
    for path, leaf in leaves.items():
        info = saved.get(path)
        is_tensor = isinstance(leaf.value, torch.Tensor)
        if is_tensor != isinstance(info, TensorStorageMetadata):
            raise CheckpointError(f"{ref.path}: {path} is a tensor on one side only")
        if not isinstance(info, TensorStorageMetadata):
            continue
        theirs = (tuple(info.size), info.properties.dtype)
        if theirs != (tuple(leaf.value.shape), leaf.value.dtype):
            raise CheckpointError(
                f"{ref.path}: {path} was saved as {_shape(*theirs)}, "
                f"the job has {_shape(tuple(leaf.value.shape), leaf.value.dtype)}",
                hint="Resume with the job that made it, or start a new run.",
            )


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}; "


def _shape(size: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(size)}"


def _like(existing: Any, saved: Json) -> Any:
    """Return a saved value in the type that the state has there: JSON knows no tuples."""
    return tuple(saved) if isinstance(existing, tuple) and isinstance(saved, list) else saved
