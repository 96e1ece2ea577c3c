"""One trace of a model for all formats that start from it (program, ONNX): tracing is what costs seconds."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

_Key = tuple[tuple[int, ...], str]


class TraceCache:
    """Remembers the trace of a model for as long as the model lives."""

    def __init__(self) -> None:
        self._traces: weakref.WeakKeyDictionary[nn.Module, dict[_Key, ExportedProgram]] = weakref.WeakKeyDictionary()

    def trace(self, model: nn.Module, example_inputs: Tensor) -> ExportedProgram:
        """Return the model as a graph of tensor operations whose batch dim is free.

        Raises ExportError with the tracer's reason: control flow that depends on values, a fixed batch size.
        """
        known = self._traces.setdefault(model, {})
        key = (tuple(example_inputs.shape), str(example_inputs.dtype))
        if key not in known:
            known[key] = _trace(model, example_inputs)
        return known[key]


def _trace(model: nn.Module, example_inputs: Tensor) -> ExportedProgram:
    import torch

    if len(example_inputs) < 2:
        raise ExportError(f"{len(example_inputs)} example rows: at least 2 are needed to keep the batch dim free")
    try:
        with torch.no_grad():
            return torch.export.export(
                model, (example_inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
            )
    except Exception as error:  # the tracer runs the user's forward and raises whatever that and its own passes raise
        raise ExportError(
            f"{type(model).__name__} cannot be traced: {first_lines(error)}",
            hint="its forward must not branch on tensor values or fix the batch size; safetensors needs no trace",
        ) from error


def first_lines(error: BaseException, limit: int = 300) -> str:
    """Return the kind and the first non-empty lines of an error's text, at most `limit` characters."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    short = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


traces = TraceCache()
