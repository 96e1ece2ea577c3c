"""Activation checkpointing: blocks forget what they computed and compute it again in the backward pass.

The result is the same to the bit: dropout draws the same numbers again, and buffers that a forward pass changes
(running statistics, a router's counts) are put back after the second one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from orchestrator.parallel.ring import RING_ATTENTION

# What `selective` keeps: products of matrices and convolutions, dear to compute and small beside what lies between.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    RING_ATTENTION,  # to compute it again is to send keys and values round again
}

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def apply_recompute(module: nn.Module, blocks: list[str], mode: str, every: int) -> list[str]:
    """Make the named blocks (those present) recompute, in place; return their names.

    `mode`: none; full: every block forgets all; every_n: every `every`-th block does; selective: every block keeps the
    outcome of matrix products and recomputes the rest (Korthikanti et al., 2022).
    """
    if mode == "none":
        return []
    present = dict(module.named_modules())
    chosen = [name for name in blocks if name in present]
    if mode == "every_n":
        chosen = [name for at, name in enumerate(blocks) if at % every == 0 and name in present]
    for name in chosen:
        block = present[name]
        contexts = partial(_contexts, block, mode == "selective")
        block.forward = partial(_checkpointed, block.forward, contexts)
    return chosen


def _checkpointed(inner: Callable[[Tensor], Tensor], contexts: Callable[[], Contexts], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return inner(x)
    result: Tensor = checkpoint(inner, x, use_reentrant=False, context_fn=contexts)
    return result


def _contexts(block: nn.Module, selective: bool) -> Contexts:
    if not selective:
        return nullcontext(), _buffers_put_back(block)
    first, again = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    # The buffers are noted outside of torch's own record of operations, which must see the same ones twice.
    return first, _both(_buffers_put_back(block), again)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(one)
        stack.enter_context(other)
        yield


@contextmanager
def _buffers_put_back(block: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
