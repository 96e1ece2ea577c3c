"""From a live state to what a writer thread may hold: a snapshot in CPU buffers, and DCP's plan made beforehand.

Only `Stage.take` touches live tensors, on the training thread. The buffers are kept and filled again at the next save:
one copy of the state (this rank's part) stays in CPU memory, pinned where it comes from a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import DTensor

from orchestrator.checkpoint.manifest import Json
from orchestrator.errors import CheckpointError

SEPARATOR = "/"


@dataclass(frozen=True)
class Leaf:
    """One value in a nested state: its path (`optim/state/conv.weight/step`), and where to put another in its place."""

    path: str
    parent: Any
    key: Any
    value: Any


@dataclass(frozen=True)
class Snapshot:
    """A state at one moment: this rank's local tensors, their write plan, and the leaves that are not tensors."""

    tensors: dict[str, torch.Tensor]
    plan: SavePlan
    values: dict[str, Json]
    total_bytes: int
    """Bytes of the full tensors (all shards, replicas once) that this rank knows of."""
    rng: dict[str, torch.Tensor] = field(default_factory=dict)


class Stage:
    """Takes snapshots, into its own buffers when `copy` is asked."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, state: dict[str, Any], *, copy: bool) -> Snapshot:
        """Return a snapshot of `state`. With `copy` it stays as it is while training goes on.

        Raises CheckpointError for a leaf that is neither a tensor nor a plain value.
        """
        full: dict[str, torch.Tensor] = {}
        values: dict[str, Json] = {}
        for leaf in iterate_leaves(state):
            if isinstance(leaf.value, torch.Tensor):
                full[leaf.path] = leaf.value.detach()
            else:
                values[leaf.path] = _plain(leaf.path, leaf.value)
        plan = create_default_local_save_plan(full, is_coordinator=False)
        local = {path: local_part(tensor) for path, tensor in full.items()}
        total = sum(tensor.numel() * tensor.element_size() for tensor in full.values())
        return Snapshot(self._copied(local) if copy else local, plan, values, total)

    def _copied(self, local: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._buffers = {path: self._buffer(path, tensor) for path, tensor in local.items()}
        for path, tensor in local.items():
            self._buffers[path].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in local.values()):
            torch.cuda.synchronize()
        return dict(self._buffers)

    def _buffer(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        old = self._buffers.get(path)
        if old is not None and (old.shape, old.dtype, old.stride()) == (tensor.shape, tensor.dtype, tensor.stride()):
            return old
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


class SnapshotPlanner(DefaultSavePlanner):
    """DCP's planner over a snapshot: the plan is there already, the data comes from the buffers."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._snapshot = snapshot

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take no state from DCP: the snapshot is the state."""
        self.state_dict: dict[str, Any] = {}
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        """Return the plan made when the snapshot was taken."""
        self.plan = self._snapshot.plan
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        """Return the buffer that holds this rank's part of a tensor."""
        return self._snapshot.tensors[index.fqn]


def iterate_leaves(node: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yield the leaves of nested dicts and of lists that hold dicts or tensors; other lists and tuples are leaves."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        path = f"{prefix}{SEPARATOR}{key}" if prefix else str(key)
        if isinstance(value, dict) or (isinstance(value, list) and _is_nested(value)):
            yield from iterate_leaves(value, path)
        else:
            yield Leaf(path, node, key, value)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this rank holds: the tensor itself unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def find_non_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Return the path of a floating-point tensor that holds NaN or infinity; None when there is none.

    A sum is not finite when any summand is not, and costs a twentieth of `isfinite` or a maximum. A sum that overflows
    for another reason is told apart by looking at the tensors singly.
    """
    floats = {path: t for path, t in tensors.items() if t.is_floating_point() and t.numel() and t.element_size() > 1}
    if not floats or torch.stack([tensor.sum().double() for tensor in floats.values()]).isfinite().all():
        return None
    return next((path for path, tensor in floats.items() if not tensor.isfinite().all()), None)


def _is_nested(value: list[Any]) -> bool:
    return any(isinstance(item, dict | list | torch.Tensor) for item in value)


def _plain(path: str, value: Any) -> Json:
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[no-any-return]
    if isinstance(value, tuple | list):
        return [_plain(path, item) for item in value]
    raise CheckpointError(
        f"{path} holds a {type(value).__name__}, which cannot be saved without pickle",
        hint="A state holds tensors, numbers, strings and lists of them; put anything else into CheckpointMeta.extra.",
    )
