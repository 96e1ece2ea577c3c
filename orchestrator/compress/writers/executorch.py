"""Format `executorch`: a `.pte` whose layers XNNPACK computes, in floats or in integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.compress.runtimes.executorch import FILE
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from orchestrator.compress.quantise import Config

EXTRA = "executorch"
MOST_ROWS = 256
"""The runtime plans its memory for a largest batch; more rows are answered in several calls."""


def write(model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Write a model as `model.pte`. Raises ExportError, NotAbleError."""
    from orchestrator.compress.writers.program import trace_lean
    from orchestrator.compress.writers.pt2e import folded

    lower(trace_lean(folded(model, context), context), folder / FILE)
    return (FILE,)


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the file of the model on integers."""
    from orchestrator.compress.writers.pt2e import to_integers

    lower(to_integers(state.model, context, build_quantiser(), EXTRA), context.folder / FILE)
    after = State(ARTIFACT, state.model, folder=context.folder, files=(FILE,), format=EXTRA, scheme=config.scheme)
    return Change(after, {"scheme": config.scheme})


def build_quantiser() -> Any:
    """Return ExecuTorch's quantiser for XNNPACK's integers: a scale for each output, ranges by minima and maxima."""
    from orchestrator.compress.writers.pt2e import tools_of

    tools = tools_of("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", EXTRA)
    quantiser = tools.XNNPACKQuantizer()
    quantiser.set_global(tools.get_symmetric_quantization_config(is_per_channel=True))
    return quantiser


def lower(program: ExportedProgram, path: Path) -> None:
    """Write a program as a `.pte`, as much of it for XNNPACK as can be. Raises ExportError, NotAbleError."""
    from orchestrator.compress.writers.pt2e import tools_of
    from orchestrator.export.trace import first_lines

    exir = tools_of("executorch.exir", EXTRA)
    xnnpack = tools_of("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA)
    try:
        edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        bound_batch(edge.exported_program(), MOST_ROWS)
        content = bytes(edge.to_executorch().buffer)
    except Exception as error:  # its passes raise whatever a graph they do not know leads them to
        raise ExportError(f"ExecuTorch cannot write this model: {first_lines(error)}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def bound_batch(program: Any, most: int) -> None:
    """Say how large the free dim can be, in place.

    Lowering (ExecuTorch 1.5 on torch 2.13) forgets it, and memory would be planned for an arbitrary 15 rows.
    """
    import torch
    from torch.utils._pytree import tree_leaves
    from torch.utils._sympy.value_ranges import ValueRanges

    for node in program.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            for size in value.shape if isinstance(value, torch.Tensor) else (value,):
                if isinstance(size, torch.SymInt):
                    for symbol in size.node.expr.free_symbols:
                        size.node.shape_env.var_to_range[symbol] = ValueRanges(1, most)
