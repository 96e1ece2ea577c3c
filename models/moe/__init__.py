"""The transformer with a mixture of experts: each token goes to its best `top_k` feed-forwards of many. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .. import transformer
from ..declare import Slice, Split
from ..shape import ModelShape, require_positive
from ..sizes import attention_flops, attention_params, gated_params

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Config(transformer.Config):
    """The transformer's keys, and those of the experts.

    `experts` feed-forwards of width `expert_hidden` (0: as `hidden`), of which a token uses `top_k`, and
    `shared_experts` that every token uses. The first `dense_layers` blocks have an ordinary feed-forward.
    `score`: how a router's numbers become weights. Balance, each 0 for off: `balance_bias` moves a bias on the choice
    by this much a step; `balance_loss` and `z_loss` weigh losses. `capacity_factor`: an expert takes at most this
    many times its fair share of the tokens at hand in training, the rest is dropped and counted (0: no limit).
    """

    experts: int = 8
    top_k: int = 2
    expert_hidden: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    balance_bias: float = 0.001
    balance_loss: float = 0.0
    z_loss: float = 0.0
    capacity_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(experts=self.experts, top_k=self.top_k)
        for name in ("expert_hidden", "shared_experts", "dense_layers", "balance_bias", "balance_loss", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts there are")
        if self.dense_layers >= self.layers:
            raise ValueError(f"dense_layers {self.dense_layers} leaves none of {self.layers} layers for experts")
        if self.repeat > 1:
            raise ValueError("repeat must be 1: a router balances the load of one depth")
        if self.capacity_factor and self.capacity_factor < 1:
            raise ValueError(f"capacity_factor must be 0 (no limit) or at least 1, not {self.capacity_factor}")

    @property
    def expert_width(self) -> int:
        """Width of one expert."""
        return self.expert_hidden or self.hidden_width


def shape(config: Config) -> ModelShape:
    """Return the model in numbers; operations are those of the experts a token uses, nothing dropped."""
    costs = layer_costs(config)
    tied = config.vocab * config.dim if config.tied_embeddings else 0
    return ModelShape(
        num_params=sum(params for _, params in costs) - tied,
        flops_per_sample=sum(flops for flops, _ in costs),
        inputs=(config.seq_len,),
        outputs=(config.seq_len, config.vocab),
        loss="cross_entropy",
        input_dtype="int64",
    )


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order."""
    return transformer.layer_names(config)


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer."""
    first, *_, norm, head = transformer.layer_costs(config)
    dense = gated_params(config.dim, config.hidden_width)
    expert, router = gated_params(config.dim, config.expert_width), config.dim * config.experts
    always = router + config.shared_experts * expert
    blocks: list[tuple[int, int]] = []
    for number in range(config.layers):
        sparse = number >= config.dense_layers
        used = always + config.top_k * expert if sparse else dense
        held = always + config.experts * expert if sparse else dense
        flops = attention_flops(config.seq_len, config.dim, config.heads, config.kv_heads, config.head_width)
        params = attention_params(config.dim, config.heads, config.kv_heads, config.head_width) + 2 * config.dim
        blocks.append((flops + 2 * config.seq_len * used, params + held))
    return [first, *blocks, norm, head]


def attention_layers(config: Config) -> list[str]:
    """Return the submodules that attend over positions."""
    return transformer.attention_layers(config)


def num_experts(config: Config) -> int:
    """Return how many routed experts a layer has: what the expert degree must divide."""
    return config.experts


def expert_layers(config: Config) -> list[str]:
    """Return the submodules that are a mixture of experts (`model.MixtureOfExperts`)."""
    names = transformer.block_names(config)
    return [f"layers.{name}.feed_forward" for name in names[config.dense_layers :]]


def shared_parameters(config: Config) -> list[tuple[str, str]]:
    """Return (first path, other path) of weights used twice."""
    return transformer.shared_parameters(config)


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits attention, dense and shared feed-forwards.

    Router and routed experts are whole on every tensor rank and compute alike; the expert axis is what divides them.
    """
    plan = transformer.outer_plan(sequence_parallel)
    sparse = expert_layers(config)
    for block in transformer.block_names(config):
        path = f"layers.{block}.feed_forward"
        plan |= transformer.attention_plan(f"layers.{block}", sequence_parallel)
        if path not in sparse:
            plan |= transformer.feed_forward_plan(path, sequence_parallel)
            continue
        if config.shared_experts:
            plan |= transformer.feed_forward_plan(f"{path}.shared", sequence_parallel=False)
        if sequence_parallel:
            plan[path] = Split("gather", "sequence", "sequence")  # its result is whole and is cut
    return plan


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide."""
    limits = transformer.tensor_limits(config)
    if not config.dense_layers:
        del limits["hidden"]
    if config.shared_experts:
        limits["shared experts' width"] = config.shared_experts * config.expert_width
    return limits


def prunable(config: Config) -> dict[str, dict[str, int]]:
    """Return what can be made smaller: as the transformer, each expert's width by itself, shared experts' together."""
    found = transformer.prunable(config)
    sparse = expert_layers(config)
    widths = {path: width for path, width in found["mlp"].items() if path not in sparse}
    for path in sparse:
        widths |= {f"{path}.experts.{at}": config.expert_width for at in range(config.experts)}
        if config.shared_experts:
            widths[f"{path}.shared"] = config.shared_experts * config.expert_width
    return found | {"mlp": widths}


def coupled(config: Config) -> dict[str, dict[str, tuple[Slice, ...]]]:
    """Return which slices of which tensors go together when one is taken out."""
    found = transformer.coupled(config)
    sparse = expert_layers(config)
    slices = {path: parts for path, parts in found["mlp"].items() if path not in sparse}
    for path in sparse:
        for at in range(config.experts):
            stacks = [Slice(f"{path}.experts.{name}", dim, index=at) for name, dim in (("w1", 1), ("w3", 1), ("w2", 2))]
            slices[f"{path}.experts.{at}"] = tuple(stacks)
        if config.shared_experts:
            slices[f"{path}.shared"] = transformer.gated_slices(f"{path}.shared")
    return found | {"mlp": slices}


def build(config: Config) -> nn.Module:
    """Return the network: tokens int64 [B, seq_len] -> scores [B, seq_len, vocab]."""
    from .model import build_moe

    return build_moe(config)


def init_parameter(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fill a full CPU tensor in place, as the transformer does; an expert's weights by its own fan-in."""
    transformer.init_parameter(name, tensor, generator)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded, recomputed and compiled one by one."""
    return transformer.shard_units(module)
