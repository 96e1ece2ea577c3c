"""Copies of a parameter that pipeline stages share get the same gradient to the bit, so that they never drift apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from orchestrator.parallel.grads import GradientReducer
from orchestrator.parallel.shared import SharedOverStages
from orchestrator.testing.ranks import run_ranks

FIRST, COPY = "layers.a.weight", "layers.b.weight"


def shared_gradient(rank: int, world_size: int, axis: str) -> dict[str, torch.Tensor]:
    """Reduce on two stages whose other weights are of other sizes, so the shared one lies elsewhere in a buffer."""
    mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("pipeline", axis))
    name = (FIRST, COPY)[mesh.get_local_rank("pipeline")]
    generator = torch.Generator().manual_seed(rank)
    named: dict[str, torch.Tensor] = {}
    for each, size in (("layers.other.weight", 7 if name == FIRST else 1001), (name, 999)):
        named[each] = nn.Parameter(torch.zeros(size))
        named[each].grad = torch.rand(size, generator=generator)
    shared = SharedOverStages({COPY: FIRST}, {FIRST: 0, COPY: 1}, mesh.get_group("pipeline"))
    group = mesh.get_group(axis)
    how: dict[str, dict[str, Any]] = {
        "replicate": {"average_over": group, "sum_over": {}},
        "context": {"average_over": None, "sum_over": {}, "sum_all_over": group},
        "tensor": {"average_over": None, "sum_over": dict.fromkeys(named, group)},
    }
    GradientReducer(named, shared=shared, **how[axis]).reduce()
    gradient = named[name].grad
    assert gradient is not None
    return {"gradient": gradient}


@pytest.mark.parametrize("axis", ["context", "replicate", "tensor"])
def test_copies_on_other_stages_have_the_same_gradient_to_the_bit(axis: str) -> None:
    first, *others = run_ranks(shared_gradient, 8, axis)
    for rank, other in enumerate(others, start=1):
        assert torch.equal(first["gradient"], other["gradient"]), rank
