"""The transformer's layers in torch. B batch, L sequence, D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..attention import Attention, GatedFeedForward
from ..layered import Layered
from . import Config, block_names


class Block(nn.Module):
    """Attention and feed-forward, each on the normed input and added to it."""

    def __init__(self, config: Config, feed_forward: nn.Module) -> None:
        super().__init__()
        dim = config.dim
        self.attention_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        heads = (config.heads, config.kv_heads)
        self.attention = Attention(dim, *heads, causal=True, rope_base=config.rope_base, head_dim=config.head_width)
        self.feed_forward_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B, L, D]."""
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD)))
        y_BLD: Tensor = x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))
        return y_BLD


def build_transformer(config: Config, feed_forward: Callable[[int], nn.Module] | None = None) -> Layered:
    """Return embedding, block1, block2, ..., norm, head; `feed_forward` makes that of block `number` (from 0)."""
    make = feed_forward or (lambda number: GatedFeedForward(config.dim, config.hidden_width))
    embedding = nn.Embedding(config.vocab, config.dim)
    head = nn.Linear(config.dim, config.vocab, bias=False)
    if config.tied_embeddings:
        head.weight = embedding.weight
    blocks = [Block(config, make(number)) for number in range(config.layers)]
    layers: dict[str, nn.Module] = {"embedding": embedding}
    for at, name in enumerate(block_names(config)):
        layers[name] = blocks[at % config.layers]  # a repeated block is one module under several names
    layers["norm"] = nn.RMSNorm(config.dim, eps=config.norm_eps)
    layers["head"] = head
    return Layered(layers)
