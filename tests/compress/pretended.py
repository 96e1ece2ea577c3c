"""A GPU that skips two of every four weights, pretended on the processor.

torch's own weights of `torch.sparse`, their rules and their dispatch are used; what is pretended is that there is a
device, and the last operator, of which a processor has no kernel: it is computed from the packed values and the
reordered places, as CUTLASS takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass as to_dense

from orchestrator.compress import pipeline
from orchestrator.compress.runtimes import device, two_of_four
from orchestrator.plan.available import Available

from .making import check_here

BOTH = (SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS)


class Kernels:
    """How often the operator that skips zeros was called."""

    calls = 0

    def multiply(self, packed: Tensor, places: Tensor, dense: Tensor, *, out_dtype: Any = None) -> Tensor:
        self.calls += 1
        assert dense.dtype == torch.bfloat16
        return to_dense(packed, places) @ dense


@contextmanager
def kernels() -> Iterator[Kernels]:
    """Give the processor a kernel for torch's operator, as long as this lasts."""
    found, library = Kernels(), torch.library.Library("aten", "IMPL")
    library.impl("_sparse_semi_structured_mm", found.multiply, "CPU")
    try:
        yield found
    finally:
        library._destroy()


def pack(weight: Tensor) -> Tensor:
    """Return a weight as torch's own class keeps it, which asks for a GPU first.

    The rules of both libraries are asked of a weight like it that says it is on a GPU.
    """
    with FakeTensorMode():
        alike = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="cuda")
        for kind in BOTH:
            kind._validate_device_dim_dtype_shape(alike)
    with pytest.MonkeyPatch.context() as patch:
        here = SparseSemiStructuredTensorCUTLASS
        patch.setattr(here, "_validate_device_dim_dtype_shape", classmethod(lambda cls, tensor: None))
        made: Tensor = here.from_dense(weight)
    return made


@contextmanager
def pretended_gpu(
    capability: tuple[int, int] = (9, 0), packs: dict[str, Callable[[Tensor], Tensor]] | None = None
) -> Iterator[Kernels]:
    """Judge artifacts of target cuda in this process, as if it had a GPU. `packs`: what makes weights ready for it."""
    made = {"torch's": pack} if packs is None else packs
    two_of_four.trials.cache_clear()
    with pytest.MonkeyPatch.context() as patch, kernels() as found:
        patch.setattr(Available, "local", classmethod(lambda cls: Available(2.0, 1, 1 << 34)))
        patch.setattr(device, "device_of", lambda target: torch.device("cpu"))
        patch.setattr("orchestrator.compress.gpu.device_of", lambda target: torch.device("cpu"))
        patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "pretended")
        patch.setattr(two_of_four, "packs", lambda device: made)
        patch.setattr(pipeline, "check_artifact", check_here)
        yield found
    two_of_four.trials.cache_clear()
