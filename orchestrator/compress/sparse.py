"""Linear layers that keep two of every four weights in a row, in bfloat16. Called by `writers.sparse`.

R rows, I inputs, O outputs. What is kept of four weights are two values and where they stood, two bits each: 1.125
bytes a weight of the layer in place of 4. The layer puts the zeros back and multiplies, in operators of torch alone, so
it runs wherever torch does; what skips the zeros on a GPU is `runtimes.two_of_four`, when the file is opened.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.compress.products import answers_of, cast, rows_of
from orchestrator.compress.runtimes.sparse import LEAST
from orchestrator.compress.runtimes.two_of_four import COLUMNS, KEPT, ROWS, is_taken
from orchestrator.errors import ExportError


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


def require_fit(model: nn.Module) -> None:
    """Raise ExportError when too few weights of a pruned model are in layers that could be kept as two of four."""
    weights = {id(layer.weight): layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
    fitting = sum(weight.numel() for weight in weights.values() if is_taken(weight))
    share = fitting / max(1, sum(parameter.numel() for parameter in model.parameters()))
    if share < LEAST:
        raise ExportError(
            f"{share:.0%} of the weights are in linear layers that can be kept as 2:4, and quantise needs {LEAST:.0%}",
            hint=f"outputs must be a multiple of {ROWS}, inputs of {COLUMNS}: choose such widths, or remove quantise",
        )


class Halves(nn.Module):
    """Rounds an input to bfloat16, for all layers that read it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input as rows [R, I]."""
        return cast(rows_of(x), KEPT)


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
        places_OG2 = cast(torch.bitwise_and(bits_OB4, 3), torch.int64).view(outputs, -1, 2)
        empty_OG4 = self.values.new_zeros(outputs, kept // 2, 4)
        weight_OI = empty_OG4.scatter(-1, places_OG2, self.values.view(outputs, -1, 2)).view(outputs, -1)
        return answers_of(nn.functional.linear(rows_RI, weight_OI), x, self.bias, outputs)
