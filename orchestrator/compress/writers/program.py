"""Format `program`: a lean `torch.export` program, also in float8 or 2:4; torch runs it without the model's code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from orchestrator.compress.quantise import Config

_TRAIL = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def write(model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Write a model as `model.pt2`, its batch dim free. Raises ExportError."""
    from orchestrator.export.program import PROGRAM_FILE, save_program

    save_program(trace_lean(model, context), folder / PROGRAM_FILE)
    return (PROGRAM_FILE,)


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the program of the model in float8, or with two of every four weights. Raises ExportError."""
    from orchestrator.compress.writers.float8 import to_float8
    from orchestrator.compress.writers.sparse import to_sparse
    from orchestrator.export.program import PROGRAM_FILE, save_program

    name, make = ("float8_layers", to_float8) if config.scheme == "float8" else ("sparse_layers", to_sparse)
    program, taken = make(state.model, context)
    save_program(program, context.folder / PROGRAM_FILE)
    after = State(
        ARTIFACT,
        state.model,
        folder=context.folder,
        files=(PROGRAM_FILE,),
        format="program",
        scheme=config.scheme,
        target=config.target,
    )
    return Change(after, {"scheme": config.scheme, name: taken})


def trace_lean(model: nn.Module, context: Context) -> ExportedProgram:
    """Return a model as a program that holds nothing but what its answers take. Raises ExportError."""
    from orchestrator.export.trace import traces

    inputs, _ = context.calibration()
    if len(inputs) < 2:
        raise ExportError("at least two calibration samples are needed", hint="raise compress.calibration.samples")
    return lean(traces.trace(model, inputs[:2]))


def lean(program: ExportedProgram) -> ExportedProgram:
    """Return a program without the weights that no operator reads, and without where in the source each line stood.

    Tracing keeps every tensor of the model: counters of batch norms, and what a converter has put others in place of.
    """
    import torch

    module = copy.deepcopy(program.graph_module)
    signature = copy.deepcopy(program.graph_signature)
    # Copying a graph gives nodes that are named like something of Python's, as `input` is, another name.
    names = {old.name: new.name for old, new in zip(program.graph.nodes, module.graph.nodes, strict=True)}
    for spec in (*signature.input_specs, *signature.output_specs):
        if hasattr(spec.arg, "name"):
            spec.arg.name = names.get(spec.arg.name, spec.arg.name)
    inputs = {node.name: node for node in module.graph.nodes if node.op == "placeholder"}
    dead = {
        spec.target: inputs[spec.arg.name]
        for spec in signature.input_specs
        if spec.target is not None and not inputs[spec.arg.name].users
    }
    for node in dead.values():
        module.graph.erase_node(node)
    signature.input_specs[:] = [spec for spec in signature.input_specs if spec.target not in dead]
    for node in module.graph.nodes:
        for name in _TRAIL:
            node.meta.pop(name, None)
    module.recompile()
    found = torch.export.ExportedProgram(
        module,
        module.graph,
        signature,
        {name: value for name, value in program.state_dict.items() if name not in dead},
        program.range_constraints,
        copy.deepcopy(program.module_call_graph),
        program.example_inputs,
        constants={name: value for name, value in program.constants.items() if name not in dead},
        verifiers=program.verifiers,
    )
    found._guards_code = program._guards_code  # what the tracer found out of shapes; its constructor takes none
    return found
