"""`Split`: how tensor parallelism divides one submodule. Standard library only; read by planning and by the engine.

A model plug-in may say more of itself, each a plain function beside `shape` (see docs/models.md, "Declarations").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

Kind = Literal["column", "row", "vocab", "channels", "norm", "gather"]
Layout = Literal["replicate", "sequence", "split"]


@dataclass(frozen=True)
class Split:
    """One submodule under tensor parallelism. What no `Split` names is replicated and computed alike on every rank.

    column: a linear layer or convolution, output features (channels) split: weight and bias dim 0.
    row: a linear layer or convolution, input features (channels) split: weight dim 1, partial results summed, then the
    bias added once. vocab: rows of an embedding split. channels: a norm over channels whose weights and buffers (dim 0)
    are split along with its input. norm: weights replicated, runs on its piece of the sequence. gather: a container
    whose input is made whole, or is whole, for the layers in it.

    `input` and `output` say how activations arrive and leave: `replicate` (whole on every rank), `sequence` (dim 1
    split), `split` (last dim, or channels, split). A column layer or container makes a `sequence` input whole itself.
    The output of a container is what its own last layer leaves, except `sequence`: its result is whole and is cut.

    Backwards: gradients that reach a whole input from column layers are partial and are summed, once: by the container
    that holds nothing but column layers and the row layer that ends it (what is in it uses the input for its row layer
    alone), else by each column layer. A container of output `sequence` computes alike on every rank, so its input's
    gradient is already whole and only cut; column layers in it sum for themselves.
    """

    kind: Kind
    input: Layout = "replicate"
    output: Layout = "replicate"


@dataclass(frozen=True)
class Slice:
    """One dim of a parameter along which the parts of a `coupled` group lie, for pruning.

    A part takes `chunk` numbers in a row (a head: its width). `index`: only at this place of the parameter's first dim
    (one expert of a stack).
    """

    parameter: str
    dim: int
    chunk: int = 1
    index: int | None = None


@dataclass(frozen=True)
class Cut:
    """Which part of a wide net's parameter a narrower net uses (`cuts`), for architecture search with shared weights.

    `places`: the places kept along each dim, in the order in which the narrower net has them. `net`: the config of the
    net that the parameter belongs to where that is not the widest one: a classifier behind three blocks cannot be a
    part of the one behind four, so every depth has its own.
    """

    parameter: str
    places: tuple[range | tuple[int, ...], ...]
    net: Any = None


def require_alike(configs: Sequence[Any], elastic: Iterable[str]) -> None:
    """Raise ValueError naming the first key, not one of `elastic`, in which two configs of a model differ."""
    free = set(elastic)
    for field in fields(configs[0]):
        seen = {getattr(config, field.name) for config in configs}
        if field.name not in free and len(seen) > 1:
            said = " and ".join(sorted(map(str, seen))[:2])
            raise ValueError(
                f"{field.name} is {said}: nets that share weights differ only in {', '.join(sorted(free))}"
            )


def require_within(**pairs: tuple[int, int]) -> None:
    """Raise ValueError naming the first size (part, whole) that the whole does not have."""
    for name, (part, whole) in pairs.items():
        if part > whole:
            raise ValueError(f"{name} {part} is more than the {whole} of the net it should be a part of")


def column_row_pairs(layers: Iterable[str]) -> dict[str, Split]:
    """Return the plan of layers in a row: column, row, column, row; one left over at the end stays whole.

    Between a column and its row layer only what treats features one by one may lie (a bend, pooling, flatten).
    """
    plan: dict[str, Split] = {}
    names = list(layers)
    for column, row in zip(names[::2], names[1::2], strict=False):
        plan[column] = Split("column", "replicate", "split")
        plan[row] = Split("row", "split", "replicate")
    return plan
