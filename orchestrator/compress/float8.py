"""Linear layers and embeddings in 8-bit floating point (e4m3), as torch alone runs them. Called by `writers.float8`.

A weight has a scale for each output, an input one for each row, taken as it comes; `torch._scaled_mm` multiplies the
two. R rows, I inputs, O outputs; both widths are filled up with zeros to a multiple of 16, which is what GPUs take.
torchao's own float8 layers refuse to be made on a machine without a GPU; these are the same arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compress.products import LOW, answers_of, cast, rows_of
from orchestrator.errors import NotAbleError

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
_MULTIPLE = 16
_LEAST_SCALE = 1e-12  # a row of zeros has a scale, too


def require_able(device: torch.device | str = "cpu") -> None:
    """Raise NotAbleError with torch's reason where it does not multiply in float8 on a device of this machine."""
    numbers, scales = torch.ones(16, 16, device=device).to(FLOAT8), torch.ones(16, 1, device=device)
    try:
        found = torch._scaled_mm(numbers, numbers.t(), scales, scales.t().contiguous(), out_dtype=LOW)
    except (AttributeError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise NotAbleError(
            f"this torch does not multiply in float8 here: {why}", hint="pip install -U torch"
        ) from error
    if not bool((found == 16).all()):
        raise NotAbleError("this torch multiplies wrongly in float8 here", hint="pip install -U torch")


def is_worth(outputs: int, inputs: int) -> bool:
    """Say whether a layer takes at most half of its fp32 bytes in float8, filled up, with its scales."""
    rows = _filled(outputs)
    return 2 * (rows * _filled(inputs) + 4 * rows) <= 4 * outputs * inputs


def round_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight in float8 [O, I], filled up, and the scale of each row [1, O], by which it is multiplied."""
    outputs, inputs = weight_OI.shape
    filled_OI = functional.pad(weight_OI, (0, _filled(inputs) - inputs, 0, _filled(outputs) - outputs))
    scale_O1 = (filled_OI.abs().amax(1, keepdim=True) / LARGEST).clamp_min(_LEAST_SCALE)
    return (filled_OI / scale_O1).to(FLOAT8), scale_O1.t().contiguous()


class Rows(nn.Module):
    """Rounds the rows of an input, for all layers that read it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.missing = _filled(inputs) - inputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows [R, I] in float8 and their scales [R, 1]."""
        x_RI = rows_of(x)
        if self.missing:
            x_RI = functional.pad(x_RI, (0, self.missing))
        scale_R1 = (x_RI.abs().amax(1, keepdim=True) / LARGEST).clamp_min(_LEAST_SCALE)
        return cast(x_RI / scale_R1, FLOAT8), scale_R1


class Product(nn.Module):
    """A linear layer on rows in float8."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, scale_1O: Tensor, bias_O: Tensor | None, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scale", scale_1O)
        self.register_buffer("bias", bias_O)
        self.outputs = outputs

    def forward(self, rows_RI: Tensor, scale_R1: Tensor, x: Tensor) -> Tensor:
        """Return the layer's outputs for the input `x` that the rows were made of, in float32."""
        low_RO = torch._scaled_mm(rows_RI, self.weight.t(), scale_R1, self.scale, out_dtype=LOW)
        return answers_of(low_RO, x, self.bias, self.outputs)


class Lookup(nn.Module):
    """An embedding whose rows are kept in float8: those looked up become float32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_OI: Tensor, scale_1O: Tensor, inputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scale", scale_1O)
        self.inputs = inputs

    def forward(self, numbers: Tensor) -> Tensor:
        """Return rows by their numbers. They are looked up as bytes, for which every device has a kernel."""
        kept = functional.embedding(numbers, self.weight.view(torch.uint8)).view(FLOAT8)
        found: Tensor = torch.ops.aten._to_copy.default(kept, dtype=torch.float32)
        found = found * functional.embedding(numbers, self.scale.t())
        return found[..., : self.inputs] if self.inputs < found.shape[-1] else found


def _filled(width: int) -> int:
    return -(-width // _MULTIPLE) * _MULTIPLE
