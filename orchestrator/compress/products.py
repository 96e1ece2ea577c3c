"""What linear layers in few bits have in common: inputs as rows, answers in float32. R rows, I inputs, O outputs.

A type is changed by the operator that checks nothing: the check of the usual one would name the device that a program
was written on.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW = torch.bfloat16
"""The type in which every kernel gives its answers."""


def rows_of(x: Tensor) -> Tensor:
    """Return the inputs of a layer as rows [R, I]."""
    return x.flatten(0, -2) if x.dim() > 2 else x


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another type, row after row whatever its strides were: GPUs take no others."""
    made: Tensor = torch.ops.aten._to_copy.default(x, dtype=dtype, memory_format=torch.contiguous_format)
    return made


def answers_of(low_RO: Tensor, x: Tensor, bias_O: Tensor | None, outputs: int) -> Tensor:
    """Return a layer's first outputs, for the input `x` that its rows were made of, in float32."""
    y_RO: Tensor = torch.ops.aten._to_copy.default(low_RO, dtype=torch.float32)
    if outputs < y_RO.shape[1]:
        y_RO = y_RO[:, :outputs]
    if bias_O is not None:
        y_RO = y_RO + bias_O
    if x.dim() > 2:
        y_RO = y_RO.unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call]
    return y_RO
