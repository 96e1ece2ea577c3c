"""A trained model from its job and its weights: built by its plug-in, or a user's plain class, and filled strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator import plugins
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.spec.base import Use


def build_model(model: Use) -> nn.Module:
    """Return the model that a job's `model` section names, with fresh weights, on the CPU. Raises JobFileError."""
    built: nn.Module = plugins.build("models", model.use, model.options)
    return built


def restore_model(model: Use, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the model with these weights, in eval mode; dtypes are those of the weights.

    Raises ExportError when a name is missing, unknown or has another shape.
    """
    built = build_model(model)
    adopt_dtypes(built, weights)
    try:
        built.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise ExportError(
            f"the checkpoint does not fit the model {model.use}: {error}",
            hint="the model's code or options changed since the run",
        ) from error
    return built.requires_grad_(False).eval()


def adopt_dtypes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer the dtype of the weight of its name (a float64 run comes back as float64)."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in weights and tensor.dtype != weights[name].dtype:
            tensor.data = tensor.data.to(weights[name].dtype)


def model_dtype(model: nn.Module) -> str:
    """Return the name of the floating-point dtype that a model computes in."""
    kinds = [tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    return str(kinds[0]).removeprefix("torch.") if kinds else "float32"
