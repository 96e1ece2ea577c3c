"""Weights and operations of the parts that the transformer families share, as plain arithmetic. Torch-free."""

from __future__ import annotations


def attention_params(dim: int, heads: int, kv_heads: int, head_dim: int | None = None) -> int:
    """Return the weights of grouped-query attention without biases; heads are `dim` / heads wide unless told."""
    return dim * 2 * (heads + kv_heads) * (head_dim or dim // heads)


def attention_flops(seq_len: int, dim: int, heads: int, kv_heads: int, head_dim: int | None = None) -> int:
    """Return the operations of attention on one sequence; a causal mask saves nothing in this count."""
    products = 2 * 2 * seq_len * seq_len * heads * (head_dim or dim // heads)
    return 2 * seq_len * attention_params(dim, heads, kv_heads, head_dim) + products


def gated_params(dim: int, hidden: int) -> int:
    """Return the weights of a gated feed-forward: gate, up, down."""
    return 3 * dim * hidden


def require_heads(dim: int, heads: int, kv_heads: int, head_dim: int = 0) -> None:
    """Raise ValueError unless heads are even in width and `kv_heads` divides `heads`.

    `head_dim` 0: `heads` must divide `dim`.
    """
    if head_dim % 2 or head_dim < 0:
        raise ValueError(f"head_dim must be 0 (dim / heads) or an even width, not {head_dim}")
    if not head_dim and (dim % heads or (dim // heads) % 2):
        raise ValueError(f"dim {dim} over {heads} heads must give an even whole width, not {dim / heads:g}")
    if heads % kv_heads:
        raise ValueError(f"heads {heads} must be a multiple of kv_heads {kv_heads}")
