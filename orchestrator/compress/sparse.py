"""Linear layers that keep two of every four weights in a row, in bfloat16. Called by `writers.sparse`.

R rows, I inputs, O outputs. What is kept of four weights are two values and where they stood, two bits each: 1.125
bytes a weight of the layer in place of 4. The layer puts the zeros back and multiplies, in operators of torch alone, so
it runs wherever torch does; what skips the zeros on a GPU is `runtimes.two_of_four`, when the file is opened.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.compress.runtimes.two_of_four import KEPT


def keep_two(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values that are kept [O, I/2] and their places among their four [O, I/8], four of two bits a byte.

    Of four weights with fewer than two that are not zero, zeros fill the places up, from the left.
    """
    outputs, inputs = weight_OI.shape
    groups_OG4 = weight_OI.detach().reshape(outputs, inputs // 4, 4)
    # Those that are not zero first, by place; a stable order, so that the same weights give the same bytes.
    places_OG2 = (groups_OG4 == 0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(dim=-1).values
    values_OG2 = groups_OG4.gather(-1, places_OG2)
    shifts_4 = torch.tensor([1, 4, 16, 64])
    packed_OB = (places_OG2.reshape(outputs, inputs // 8, 4) * shifts_4).sum(-1)
    return values_OG2.reshape(outputs, inputs // 2).to(KEPT), packed_OB.to(torch.uint8)


class Halves(nn.Module):
    """Rounds an input to bfloat16, for all layers that read it. The operator names no device: see `float8.Rows`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input as rows [R, I]."""
        x_RI = x.flatten(0, -2) if x.dim() > 2 else x
        rows: Tensor = torch.ops.aten._to_copy.default(x_RI, dtype=KEPT, memory_format=torch.contiguous_format)
        return rows


class Product(nn.Module):
    """A linear layer on rows in bfloat16."""

    values: Tensor
    places: Tensor
    bias: Tensor | None

    def __init__(self, values: Tensor, places: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("places", places)
        self.register_buffer("bias", bias_O)

    def forward(self, rows_RI: Tensor, x: Tensor) -> Tensor:
        """Return the layer's outputs for the input `x` that the rows were made of, in float32."""
        outputs, kept = self.values.shape
        shifts_4 = torch.arange(0, 8, 2, dtype=torch.uint8, device=self.places.device)
        bits_OB4 = torch.bitwise_right_shift(self.places.unsqueeze(-1), shifts_4)
        places_OB4 = torch.ops.aten._to_copy.default(torch.bitwise_and(bits_OB4, 3), dtype=torch.int64)
        places_OG2 = places_OB4.view(outputs, -1, 2)
        empty_OG4 = self.values.new_zeros(outputs, kept // 2, 4)
        weight_OI = empty_OG4.scatter(-1, places_OG2, self.values.view(outputs, -1, 2)).view(outputs, -1)
        low_RO = nn.functional.linear(rows_RI, weight_OI)
        y_RO: Tensor = torch.ops.aten._to_copy.default(low_RO, dtype=torch.float32)
        if self.bias is not None:
            y_RO = y_RO + self.bias
        if x.dim() > 2:
            y_RO = y_RO.unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call]
        return y_RO
