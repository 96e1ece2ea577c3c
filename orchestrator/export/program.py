"""Exporter `program`: the model as a `torch.export` graph with a free batch dim, in one `model.pt2`."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError
from orchestrator.export.archive import check_archive
from orchestrator.export.base import Tolerance

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

PROGRAM_FILE = "model.pt2"


@dataclass(frozen=True)
class Config:
    """No options."""


def build(config: Config) -> ProgramExporter:
    """Return the exporter."""
    return ProgramExporter()


class ProgramExporter:
    """Writes `model.pt2`. Needs torch to run, not the model's source."""

    tolerance = Tolerance(relative=1e-6)  # not absolute: float32 rounds a score of 16 by more than 1e-6

    def write(self, model: nn.Module, example_inputs: Tensor, folder: Path) -> list[Path]:
        """Trace the model and write the archive, free of pickles; refuse a model that cannot be stored so."""
        from orchestrator.export.trace import traces

        path = folder / PROGRAM_FILE
        save_program(traces.trace(model, example_inputs), path)
        return [path]

    def load(self, folder: Path) -> Callable[[Tensor], Tensor]:
        """Return the program as a function of a batch of any size."""
        import torch

        module = load_program(folder / PROGRAM_FILE).module()

        def run(inputs_B: Tensor) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = module(inputs_B)
            return outputs

        return run

    def read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return parameters and persistent buffers under the model's own names."""
        return dict(load_program(folder / PROGRAM_FILE).state_dict)

    def versions(self) -> Mapping[str, str]:
        """Return the version of torch."""
        return {"torch": version("torch")}


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program as an archive free of pickles. Raises ExportError when it cannot be stored so."""
    import torch

    from orchestrator.export.trace import first_lines

    program = copy.copy(program)
    program.example_inputs = None  # torch would store them as a pickle
    try:
        torch.export.save(program, path)
    except Exception as error:  # the serialiser raises many kinds: no schema for an operator, an unknown constant
        raise ExportError(f"the traced program cannot be saved: {first_lines(error)}") from error
    check_archive(path)


def load_program(path: Path, content: bytes | None = None) -> ExportedProgram:
    """Check the archive (`content`, where its bytes were read already) against the allow-lists, then load it.

    Raises ExportError.
    """
    import torch

    from orchestrator.export.trace import first_lines

    check_archive(path, content)
    try:
        return torch.export.load(path if content is None else io.BytesIO(content))
    except Exception as error:  # a damaged archive surfaces as anything from KeyError to a C++ RuntimeError
        raise ExportError(f"{path} cannot be loaded: {first_lines(error)}") from error
