"""Exporter `safetensors`: weights and buffers by name; the model is rebuilt from its plug-in and loaded strictly.

Loading runs the plug-in that the manifest's job names, as running the job does; the weight file itself cannot run code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError
from orchestrator.export.base import Tolerance
from orchestrator.export.manifest import read_manifest

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Config:
    """No options."""


def build(config: Config) -> SafetensorsExporter:
    """Return the exporter."""
    return SafetensorsExporter()


class SafetensorsExporter:
    """Writes `model.safetensors`. Tensors that share memory are stored once."""

    tolerance = Tolerance(max_abs=0.0)

    def write(self, model: nn.Module, example_inputs: Tensor, folder: Path) -> list[Path]:
        """Write the weights; the examples are not needed."""
        from safetensors.torch import save_model

        path = folder / WEIGHTS_FILE
        try:
            save_model(model, str(path))
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"safetensors cannot hold these weights: {error}") from error
        return [path]

    def load(self, folder: Path) -> Callable[[Tensor], Tensor]:
        """Return the rebuilt model. Raises ExportError when names, shapes or the file do not fit."""
        import torch

        model = _rebuild(folder)

        def run(inputs_B: Tensor) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = model(inputs_B)
            return outputs

        return run

    def read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return the tensors as a rebuilt model holds them, shared ones under each of their names."""
        from orchestrator.export.weights import state_tensors

        return state_tensors(_rebuild(folder))

    def versions(self) -> Mapping[str, str]:
        """Return versions of safetensors and torch."""
        return {name: version(name) for name in ("safetensors", "torch")}


def _rebuild(folder: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, load_model

    from orchestrator.export.restore import adopt_dtypes, build_model
    from orchestrator.spec.base import Use

    model, path = build_model(Use.model_validate(read_manifest(folder).job["model"])).eval(), folder / WEIGHTS_FILE
    try:
        adopt_dtypes(model, load_file(str(path)))
        load_model(model, str(path), strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ExportError(f"{path} does not fit the model: {error}") from error
    return model.requires_grad_(False)  # as the eager model was: torch picks other kernels for weights that learn
