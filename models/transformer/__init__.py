"""A decoder-only transformer: RMS norm, rotary positions, grouped-query attention, SwiGLU. Torch-free.

What it says of itself for planning is here (`shape`, layers, tensor parallelism, shared weights); torch is in `model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..declare import Layout, Slice, Split
from ..shape import ModelShape, require_dropout, require_positive
from ..sizes import attention_flops, attention_params, gated_params, require_heads
from .parts import cuts, elastic, widest

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


__all__ = [
    "Config",
    "attention_layers",
    "attention_plan",
    "attention_slices",
    "block_names",
    "block_params",
    "build",
    "coupled",
    "cuts",
    "elastic",
    "feed_forward_plan",
    "gated_slices",
    "init_parameter",
    "layer_costs",
    "layer_names",
    "outer_plan",
    "prunable",
    "shape",
    "shard_units",
    "shared_parameters",
    "tensor_limits",
    "tensor_plan",
    "widest",
]


@dataclass(frozen=True)
class Config:
    """Sizes. Tokens 0 .. `vocab` - 1 in, scores of the next token out at each of `seq_len` places.

    `layers` blocks of width `dim`; `hidden` is the width of the feed-forward (0: 8/3 of `dim`, up to a multiple of 32),
    `head_dim` that of a head (0: `dim` / `heads`). `tied_embeddings`: the head uses the embedding's weights. `repeat`:
    the row of blocks is gone through this many times with the same weights.
    """

    vocab: int = 256
    seq_len: int = 128
    dim: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 0
    dropout: float = 0.0
    tied_embeddings: bool = False
    repeat: int = 1
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    head_dim: int = 0

    def __post_init__(self) -> None:
        sizes = ("vocab", "seq_len", "dim", "layers", "heads", "kv_heads", "repeat")
        require_positive(**{name: getattr(self, name) for name in sizes})
        require_dropout(self.dropout)
        require_heads(self.dim, self.heads, self.kv_heads, self.head_dim)
        if self.hidden < 0:
            raise ValueError(f"hidden must be 0 (chosen from dim) or a width, not {self.hidden}")
        if self.rope_base <= 1 or self.norm_eps <= 0:
            raise ValueError(f"rope_base must be above 1 and norm_eps above 0, not {self.rope_base}, {self.norm_eps}")

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.dim // self.heads

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward."""
        return self.hidden or -(-8 * self.dim // 96) * 32


def shape(config: Config) -> ModelShape:
    """Return the model in numbers: token numbers (int64) in, scores of the next token out."""
    costs = layer_costs(config)
    reused = config.vocab * config.dim if config.tied_embeddings else 0
    reused += block_params(config) * config.layers * (config.repeat - 1)
    return ModelShape(
        num_params=sum(params for _, params in costs) - reused,
        flops_per_sample=sum(flops for flops, _ in costs),
        inputs=(config.seq_len,),
        outputs=(config.seq_len, config.vocab),
        loss="cross_entropy",
        input_dtype="int64",
    )


def block_params(config: Config) -> int:
    """Return the weights of one block."""
    attention = attention_params(config.dim, config.heads, config.kv_heads, config.head_width)
    return attention + gated_params(config.dim, config.hidden_width) + 2 * config.dim


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order."""
    return ["embedding", *block_names(config), "norm", "head"]


def block_names(config: Config) -> list[str]:
    """Return the names of the blocks, repeats included."""
    return [f"block{number}" for number in range(1, config.layers * config.repeat + 1)]


def attention_layers(config: Config) -> list[str]:
    """Return the submodules that attend over positions: where a split sequence comes together."""
    return [f"layers.{name}.attention" for name in block_names(config)]


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer; shared weights count wherever they are used."""
    flops = attention_flops(config.seq_len, config.dim, config.heads, config.kv_heads, config.head_width)
    flops += 2 * config.seq_len * gated_params(config.dim, config.hidden_width)
    blocks = [(flops, block_params(config))] * (config.layers * config.repeat)
    table = config.vocab * config.dim
    return [(0, table), *blocks, (0, config.dim), (2 * config.seq_len * table, table)]


def shared_parameters(config: Config) -> list[tuple[str, str]]:
    """Return (first path, other path) of weights used in several layers: tied embedding, repeated blocks."""
    blocks = block_names(config)
    parts = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    parts += [f"feed_forward.{name}" for name in ("gate", "up", "down")] + ["attention_norm", "feed_forward_norm"]
    found = [
        (f"layers.{blocks[at % config.layers]}.{part}.weight", f"layers.{blocks[at]}.{part}.weight")
        for at in range(config.layers, len(blocks))
        for part in parts
    ]
    if config.tied_embeddings:
        found.append(("layers.embedding.weight", "layers.head.weight"))
    return found


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits each submodule (Shoeybi et al. 2019, Korthikanti et al. 2022)."""
    plan = outer_plan(sequence_parallel)
    for block in block_names(config):
        plan |= attention_plan(f"layers.{block}", sequence_parallel)
        plan |= feed_forward_plan(f"layers.{block}.feed_forward", sequence_parallel)
    return plan


def outer_plan(sequence_parallel: bool) -> dict[str, Split]:
    """Return the plan of embedding, last norm and head."""
    if not sequence_parallel:
        return {"layers.embedding": Split("vocab"), "layers.head": Split("column", output="split")}
    return {
        "layers.embedding": Split("vocab", output="sequence"),
        "layers.norm": Split("norm", "sequence", "sequence"),
        "layers.head": Split("column", "sequence", "split"),
    }


def attention_plan(block: str, sequence_parallel: bool) -> dict[str, Split]:
    """Return the plan of a block's attention and of its two norms."""
    plan = {f"{block}.attention.{name}": Split("column", output="split") for name in ("query", "key", "value")}
    between: Layout = "sequence" if sequence_parallel else "replicate"
    plan[f"{block}.attention.output"] = Split("row", "split", between)
    plan[f"{block}.attention"] = Split("gather", between)
    if sequence_parallel:
        plan |= {
            f"{block}.attention_norm": Split("norm", "sequence", "sequence"),
            f"{block}.feed_forward_norm": Split("norm", "sequence", "sequence"),
        }
    return plan


def feed_forward_plan(path: str, sequence_parallel: bool) -> dict[str, Split]:
    """Return the plan of a gated feed-forward."""
    plan = {f"{path}.{name}": Split("column", output="split") for name in ("gate", "up")}
    between: Layout = "sequence" if sequence_parallel else "replicate"
    plan[f"{path}.down"] = Split("row", "split", between)
    plan[path] = Split("gather", between)
    return plan


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide."""
    hidden = config.hidden_width
    return {"heads": config.heads, "kv_heads": config.kv_heads, "hidden": hidden, "vocab": config.vocab}


def prunable(config: Config) -> dict[str, dict[str, int]]:
    """Return what can be made smaller: feed-forward widths, groups of heads with their keys and values, blocks."""
    names = block_names(config)[: config.layers]
    found = {
        "mlp": {f"layers.{name}.feed_forward": config.hidden_width for name in names},
        "heads": {f"layers.{name}.attention": config.kv_heads for name in names},
    }
    return found | ({"depth": {"blocks": config.layers}} if config.repeat == 1 else {})


def coupled(config: Config) -> dict[str, dict[str, tuple[Slice, ...]]]:
    """Return which slices of which tensors go together when one is taken out."""
    names = block_names(config)[: config.layers]
    found: dict[str, dict[str, tuple[Slice, ...]]] = {
        "mlp": {f"layers.{name}.feed_forward": gated_slices(f"layers.{name}.feed_forward") for name in names},
        "heads": {f"layers.{name}.attention": attention_slices(config, f"layers.{name}.attention") for name in names},
    }
    return found | ({"depth": {f"layers.{name}": () for name in names}} if config.repeat == 1 else {})


def gated_slices(path: str) -> tuple[Slice, ...]:
    """Return where the width of a gated feed-forward lies."""
    return (Slice(f"{path}.gate.weight", 0), Slice(f"{path}.up.weight", 0), Slice(f"{path}.down.weight", 1))


def attention_slices(config: Config, path: str) -> tuple[Slice, ...]:
    """Return where a head of keys and values lies, and all heads of queries that use it."""
    width = config.head_width
    queries = width * config.heads // config.kv_heads
    keys = [Slice(f"{path}.{name}.weight", 0, width) for name in ("key", "value")]
    return (Slice(f"{path}.query.weight", 0, queries), *keys, Slice(f"{path}.output.weight", 1, queries))


def build(config: Config) -> nn.Module:
    """Return the network: tokens int64 [B, seq_len] -> scores [B, seq_len, vocab]. Shorter sequences work too."""
    from .model import build_transformer

    return build_transformer(config)


def init_parameter(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fill a full CPU tensor in place: norms 1, embedding and head normal of 0.02, others by their fan-in."""
    from ..init import init_transformer_parameter

    init_transformer_parameter(name, tensor, generator)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded, recomputed and compiled one by one."""
    from ..layered import layers_with_own_parameters

    return layers_with_own_parameters(module)
