"""States whose every value is a function of (step, name), under every layout, and a store over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from orchestrator.checkpoint.disk import Disk
from orchestrator.checkpoint.manifest import CheckpointMeta, CheckpointRef
from orchestrator.checkpoint.store import CheckpointStore

SHAPES = {"conv.weight": (7, 3, 2, 2), "conv.bias": (1,), "head.weight": (10, 6), "empty": (0, 4)}
"""Sizes that divide evenly by no number of ranks: some ranks get a short shard, some none."""


def full_tensor(step: int, name: str, offset: int = 0) -> torch.Tensor:
    """The value of a tensor at a step."""
    generator = torch.Generator().manual_seed(step * 1000 + list(SHAPES).index(name) * 10 + offset)
    return torch.randn(SHAPES[name], generator=generator)


def full_model(step: int) -> dict[str, torch.Tensor]:
    """All weights at a step, unsharded."""
    return {name: full_tensor(step, name) for name in SHAPES}


def make_state(step: int, layout: str = "alone", world_size: int = 1) -> dict[str, Any]:
    """Weights and optimiser state at a step; `layout` is alone, replicate, shard or both (2 x world/2)."""
    spread = _spread(layout, world_size)
    model = {name: spread(full_tensor(step, name)) for name in SHAPES}
    if layout in {"alone", "replicate"}:
        model["head.weight"] = model["head.weight"].as_strided((10, 6), (1, 10)).contiguous().t().contiguous().t()
        model["head.weight"].copy_(full_tensor(step, "head.weight"))
    moments = {
        name: {"step": torch.tensor(float(step)), "exp_avg": spread(full_tensor(step, name, 1))} for name in SHAPES
    }
    groups = [{"lr": 0.1 / step, "betas": (0.9, 0.99), "fused": None, "params": list(SHAPES)}]
    return {"model": model, "optim": {"state": moments, "param_groups": groups}}


def assert_same(state: dict[str, Any], step: int) -> None:
    """Fail unless every value of `state` is bit for bit that of `step`."""
    want = make_state(step)
    for name in SHAPES:
        assert torch.equal(_full(state["model"][name]), want["model"][name]), name
        mine, theirs = state["optim"]["state"][name], want["optim"]["state"][name]
        assert torch.equal(_full(mine["exp_avg"]), theirs["exp_avg"]), name
        assert mine["step"].item() == step
    assert state["optim"]["param_groups"] == want["optim"]["param_groups"]


def make_store(folder: Path, rank: int = 0, world_size: int = 1, **changes: Any) -> CheckpointStore:
    """A store with the usual settings, some of them changed."""
    settings: dict[str, Any] = {"attempt": 1, "token": 1, "check_token": _always, "keep": 2, "background": False}
    return CheckpointStore(folder, rank=rank, world_size=world_size, **(settings | changes))


def save_steps(folder: Path, *steps: int, best: tuple[int, ...] = (), **changes: Any) -> list[CheckpointRef]:
    """Save these steps in one process; return what was committed."""
    store = make_store(folder, **({"keep": 100} | changes))
    refs = []
    for step in steps:
        store.save(make_state(step), CheckpointMeta(step=step), best=step in best)
        assert store.last_committed is not None
        refs.append(store.last_committed)
    store.close()
    return refs


def names_in(folder: Path) -> set[str]:
    """Names of all saves in a folder."""
    return {path.name for path in folder.iterdir()}


class RecordingDisk(Disk):
    """Counts durable operations and calls `on_operation` before each; tests make it raise or kill."""

    def __init__(self) -> None:
        self.operations: list[str] = []

    def on_operation(self, what: str, path: Path) -> None:
        """Called before every operation."""
        self.operations.append(f"{what} {path.name}")

    def make_folder(self, path: Path) -> None:
        self.on_operation("mkdir", path)
        super().make_folder(path)

    def open_write(self, path: Path) -> Any:
        self.on_operation("open", path)
        return super().open_write(path)

    def commit_file(self, path: Path, data: bytes) -> None:
        self.on_operation("commit", path)
        super().commit_file(path, data)

    def sync_folder(self, path: Path) -> None:
        self.on_operation("sync", path)
        super().sync_folder(path)

    def remove(self, folder: Path) -> None:
        self.on_operation("remove", folder)
        super().remove(folder)


def _always() -> bool:
    return True


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _spread(layout: str, world_size: int) -> Any:
    if layout in {"alone", "replicate"}:
        return lambda tensor: tensor
    if layout == "shard":
        mesh = init_device_mesh("cpu", (world_size,))
        return lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])
    mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("replicate", "shard"))
    return lambda tensor: distribute_tensor(tensor, mesh, [Replicate(), Shard(0)])
