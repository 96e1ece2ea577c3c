"""`run_split`: a model under its tensor plan, the ranks being threads of this process and the plan read literally."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.declare import Split


class _Ranks:
    """Threads that exchange one tensor at a time."""

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self._barrier = Barrier(degree, timeout=60)
        self._given: list[Tensor] = [torch.empty(0)] * degree

    def exchange(self, rank: int, mine: Tensor) -> list[Tensor]:
        self._given[rank] = mine
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given


def run_split(module: nn.Module, plan: Mapping[str, Split], x: Tensor, degree: int) -> Tensor:
    """Return the outputs of `module` computed by `degree` ranks that each hold what the plan leaves them."""
    ranks = _Ranks(degree)
    parts = [_part(module, plan, rank, ranks) for rank in range(degree)]
    with ThreadPoolExecutor(degree) as pool:
        outputs = list(pool.map(lambda part: _no_grad(part, x), parts))
    last = plan.get("layers.head")
    if last is not None and last.output == "split":
        return torch.cat(outputs, -1)
    assert all(torch.equal(output, outputs[0]) for output in outputs), "ranks disagree"
    return outputs[0]


def _no_grad(part: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = part(x)
    return result


def _part(module: nn.Module, plan: Mapping[str, Split], rank: int, ranks: _Ranks) -> nn.Module:
    part = copy.deepcopy(module)
    done: set[int] = set()
    for path, split in plan.items():
        target = part.get_submodule(path)
        if id(target) in done:  # one block under several names
            continue
        done.add(id(target))
        _cut(target, split, rank, ranks.degree, done)
        target.register_forward_pre_hook(_before(split, rank, ranks))
        target.register_forward_hook(_after(split, target, rank, ranks))
    return part


def _cut(target: nn.Module, split: Split, rank: int, degree: int, done: set[int]) -> None:
    dims = {"column": 0, "vocab": 0, "channels": 0, "row": 1}
    if split.kind not in dims:
        return
    for name, tensor in [*target.named_parameters(recurse=False), *target.named_buffers(recurse=False)]:
        if id(tensor) in done:  # an embedding that is the head too
            continue
        done.add(id(tensor))
        if tensor.dim() > dims[split.kind]:
            tensor.data = tensor.data.chunk(degree, dims[split.kind])[rank].contiguous()
        elif name == "bias":
            tensor.data = tensor.data / degree  # summed over ranks it is whole again


def _before(split: Split, rank: int, ranks: _Ranks) -> Callable[[nn.Module, Any], Any]:
    def hook(module: nn.Module, args: Any) -> Any:
        (x,) = args
        if split.kind == "vocab":
            rows = module.get_parameter("weight").shape[0]
            mine = (x >= rank * rows) & (x < (rank + 1) * rows)
            module.pretend_mine = mine  # type: ignore[assignment]
            return ((x - rank * rows).clamp(0, rows - 1),)
        if split.input == "sequence" and split.kind in ("column", "gather"):
            return (torch.cat(ranks.exchange(rank, x), 1),)
        return (x,)

    return hook


def _after(split: Split, target: nn.Module, rank: int, ranks: _Ranks) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        if split.kind == "vocab":
            y = y * module.pretend_mine[..., None]  # type: ignore[index]
        if split.kind in ("row", "vocab"):
            y = torch.stack(ranks.exchange(rank, y)).sum(0)
        if split.output == "sequence" and split.kind in ("row", "vocab", "gather"):
            y = y.chunk(ranks.degree, 1)[rank]
        return y

    return hook
