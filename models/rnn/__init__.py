"""A recurrent network, GRU or LSTM: reads a sequence step by step, over text or over rows of numbers. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..declare import Split
from ..shape import ModelShape, linear_flops, linear_params, require_dropout, require_positive

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

_GATES = {"gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Config:
    """Text: `vocab` tokens in, scores of the next token out at each of `seq_len` places.

    With `vocab: 0` it reads `seq_len` rows of `features` numbers and gives the scores of `classes` after the last.
    """

    kind: Literal["gru", "lstm"] = "gru"
    vocab: int = 256
    features: int = 0
    classes: int = 0
    seq_len: int = 128
    dim: int = 64
    hidden: int = 128
    layers: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(seq_len=self.seq_len, dim=self.dim, hidden=self.hidden, layers=self.layers)
        require_dropout(self.dropout)
        if self.vocab < 0:
            raise ValueError(f"vocab must be a number of tokens, or 0 for rows of numbers, not {self.vocab}")
        if self.vocab and (self.features or self.classes):
            raise ValueError("features and classes are for rows of numbers: set vocab to 0, or leave them out")
        if not self.vocab:
            require_positive(features=self.features, classes=self.classes)


def shape(config: Config) -> ModelShape:
    """Return the model in numbers; outputs are scores (logits)."""
    costs = layer_costs(config)
    text = config.vocab > 0
    return ModelShape(
        num_params=sum(params for _, params in costs),
        flops_per_sample=sum(flops for flops, _ in costs),
        inputs=(config.seq_len,) if text else (config.seq_len, config.features),
        outputs=(config.seq_len, config.vocab) if text else (config.classes,),
        loss="cross_entropy",
        input_dtype="int64" if text else "float32",
    )


def recurrent_names(config: Config) -> list[str]:
    """Return the names of the recurrent layers."""
    return [f"{config.kind}{number}" for number in range(1, config.layers + 1)]


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order."""
    dropout = ["dropout"] if config.dropout else []
    if config.vocab:
        return ["embedding", *recurrent_names(config), *dropout, "head"]
    return [*recurrent_names(config), "last", *dropout, "head"]


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer."""
    gates, costs, width = _GATES[config.kind], {}, config.dim if config.vocab else config.features
    for name in recurrent_names(config):
        weights = gates * config.hidden * (width + config.hidden)
        costs[name] = (2 * config.seq_len * weights, weights + 2 * gates * config.hidden)
        width = config.hidden
    pair = (config.hidden, config.vocab or config.classes)
    costs["head"] = (linear_flops(*pair) * (config.seq_len if config.vocab else 1), linear_params(*pair))
    costs["embedding"] = (0, config.vocab * config.dim)
    return [costs.get(name, (0, 0)) for name in layer_names(config)]


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits embedding and head; the recurrent layers stay whole."""
    if not config.vocab:
        return {}
    return {"layers.embedding": Split("vocab"), "layers.head": Split("column", output="split")}


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide."""
    return {"vocab": config.vocab} if config.vocab else {}


def build(config: Config) -> nn.Module:
    """Return the network: tokens int64 [B, L] -> scores [B, L, vocab], or rows [B, L, features] -> [B, classes]."""
    from .model import build_rnn

    return build_rnn(config)


def init_parameter(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fill a full CPU tensor in place: biases 0, an LSTM's forget gate 1, weights normal with 1 / sqrt(fan_in).

    A forget gate that starts open lets the first gradients through (Jozefowicz et al. 2015).
    """
    values = tensor.detach()
    layer, _, kind = name.rpartition(".")
    if "bias" in kind:
        values.zero_()
        if kind == "bias_ih_l0" and ".lstm" in layer:
            values.chunk(4)[1].fill_(1.0)  # gates lie in the order input, forget, cell, output
    else:
        deviation = 0.02 if layer.endswith("head") else 1.0
        fan_in = 1 if layer.endswith(("head", "embedding")) else values.shape[1]
        values.normal_(0.0, deviation / fan_in**0.5, generator=generator)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded one by one."""
    from ..layered import layers_with_parameters

    return layers_with_parameters(module)
