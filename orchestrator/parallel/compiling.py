"""`torch.compile` block by block: blocks of one kind share what was compiled, so its time does not follow the depth.

Called by `apply` before activation checkpointing and sharding, which stay outside of the compiled code: what a block
forgets is computed again by the same compiled code, and weights are gathered before it runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch._dynamo import config as dynamo_config

_VARIANTS_PER_BLOCK = 4  # training and evaluation, each for whole batches and for microbatches


def apply_compile(module: nn.Module, blocks: Iterable[str]) -> list[str]:
    """Let the named blocks (those present) be compiled at their first call, in place; return their names.

    A model that names no blocks is compiled whole: then compile time grows with its depth. The code of a block is that
    of its class, so blocks compiled one after the other find it compiled already, if sizes and options are alike.
    """
    names = list(blocks)
    if not names:
        module.compile()
        return []
    present = dict(module.named_modules())
    chosen = [name for name in names if name in present]
    # Blocks that are not alike, or that a layout has given forwards of their own, share their class's code and would
    # reach torch's limit of variants of it (8) in a deep model; beyond it a block would quietly stay uncompiled.
    limit = _VARIANTS_PER_BLOCK * len(chosen)
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, limit)
    dynamo_config.accumulated_recompile_limit = max(dynamo_config.accumulated_recompile_limit, limit)
    for name in chosen:
        # The forward alone, not the call: hooks (gathering a shard's weights) are no part of the compiled code.
        present[name].forward = torch.compile(present[name].forward)
    return chosen
