"""Weights on their way out: one digest for a set of named tensors, and a copy of a model in plain memory layout."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def digest_weights(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) over name, dtype, shape and bytes of every tensor, in the order of the names.

    Memory layout (channels_last, views) does not enter: bytes are read row by row.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        plain = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in eval mode, every tensor in contiguous layout; the model itself is left alone."""
    import torch

    twin = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
            tensor.requires_grad_(False)
            tensor.grad = None
    return twin


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name."""
    import torch

    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
