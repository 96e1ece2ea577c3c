"""Weights in a safetensors file, run by the model's own code in torch: the one format that cannot do without it."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError, OrchestratorError

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Array, Run

FILE = "weights.safetensors"


class Safetensors:
    """One `weights.safetensors`, in whose head the model's plug-in is named; opening it imports that plug-in."""

    files: tuple[str, ...] = (FILE,)
    reference = "safetensors"
    refused: tuple[str, ...] = ("torchao", "onnx", "onnxruntime")
    code: tuple[str, ...] = ("orchestrator.models",)
    packages: tuple[str, ...] = ("torch", "safetensors")

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the rebuilt model as a function of a batch; threads are those that the process gives torch."""
        import torch

        (name, content), *_ = contents.items()
        model = _rebuilt(name, content)

        def run(inputs_B: Array) -> Array:
            with torch.inference_mode():
                outputs: Array = model(torch.from_numpy(inputs_B)).numpy()
            return outputs

        return run

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count numbers by bits, and layers of the rebuilt model; a tensor that has no place in it fails."""
        (name, content), *_ = contents.items()
        if page.scheme != "fp32":
            raise ExportError(f"{page.scheme} in name only: {name} holds weights in fp32")
        model = _rebuilt(name, content)
        bits: Counter[str] = Counter()
        for tensor in _tensors(name, content).values():
            bits[str(8 * tensor.element_size())] += tensor.numel()
        layers = Counter(type(part).__name__ for part in model.modules() if not list(part.children()))
        return {
            "coverage": 0.0,
            "weights_by_bits": dict(sorted(bits.items())),
            "integer_operators": 0,
            "operators": dict(layers.most_common()),
        }


RUNTIME = Safetensors()


def _tensors(name: str, content: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(content))
    except SafetensorError as error:
        raise ExportError(f"{name} is no safetensors file: {error}") from error


def _rebuilt(name: str, content: bytes) -> nn.Module:
    from orchestrator.compress.rebuild import rebuild
    from orchestrator.spec.base import Use

    tensors = _tensors(name, content)
    try:
        (size,) = struct.unpack("<Q", content[:8])
        page = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["orchestrator"])
        use, shared = Use.model_validate(page["model"]), dict(page["shared"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{name} does not say which model its weights are of: {error}") from error
    try:
        return rebuild(use, tensors, shared)
    except OrchestratorError:
        raise
    except Exception as error:  # the user's model raises what it likes at weights that are not its own
        raise ExportError(f"{name} cannot be put into the model {use.use}: {type(error).__name__}: {error}") from error
