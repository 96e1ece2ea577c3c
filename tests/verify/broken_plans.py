"""A transformer whose tensor plans are wrong although every shape fits: what `verify` must find and name."""

from __future__ import annotations

from orchestrator.models.declare import Split
from orchestrator.models.transformer import Config, build, init_parameter, layer_costs, layer_names, shape
from orchestrator.models.transformer import tensor_plan as right_plan

__all__ = ["Config", "build", "init_parameter", "layer_costs", "layer_names", "shape", "tensor_plan"]


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return a plan that leaves something out.

    With pieces of sequences a norm: each rank then has its gradient of its own piece only. With whole ones keys and
    values: every rank has all of them, and its share of the queries meets those that belong to other queries.
    """
    plan = right_plan(config, sequence_parallel)
    if sequence_parallel:
        del plan["layers.block2.attention_norm"]
    else:
        del plan["layers.block1.attention.key"], plan["layers.block1.attention.value"]
    return plan
