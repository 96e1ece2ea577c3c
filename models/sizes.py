"""Weights and operations of the parts that the transformer families share, as plain arithmetic. Torch-free."""

from __future__ import annotations


def attention_params(dim: int, heads: int, kv_heads: int) -> int:
    """Return the weights of grouped-query attention without biases."""
    return dim * (2 * dim + 2 * kv_heads * (dim // heads))


def attention_flops(seq_len: int, dim: int, heads: int, kv_heads: int) -> int:
    """Return the operations of attention on one sequence; a causal mask saves nothing in this count."""
    return 2 * seq_len * attention_params(dim, heads, kv_heads) + 2 * 2 * seq_len * seq_len * dim


def gated_params(dim: int, hidden: int) -> int:
    """Return the weights of a gated feed-forward: gate, up, down."""
    return 3 * dim * hidden


def require_heads(dim: int, heads: int, kv_heads: int) -> None:
    """Raise ValueError unless `heads` divides `dim` into even widths and `kv_heads` divides `heads`."""
    if dim % heads or (dim // heads) % 2:
        raise ValueError(f"dim {dim} over {heads} heads must give an even whole width, not {dim / heads:g}")
    if heads % kv_heads:
        raise ValueError(f"heads {heads} must be a multiple of kv_heads {kv_heads}")
