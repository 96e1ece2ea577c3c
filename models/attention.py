"""Attention, rotary positions and the gated feed-forward, shared by the transformer families. Imports torch.

B batch, L sequence, D model width, H heads, E width of a head. Heads are counted from the tensors at hand, never from a
config, so the same code runs on some of the heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): turns pairs of numbers by angles that grow with the position. No weights.

    `start` is the position of the first token at hand: not 0 where a sequence is cut into pieces.
    """

    def __init__(self, base: float) -> None:
        super().__init__()
        self.base = base
        self.start = 0

    def forward(self, x_BHLE: Tensor) -> Tensor:
        """Turn queries or keys; the tables are made here, so that a block needs nothing from another one."""
        length, width = x_BHLE.shape[-2:]
        # Angles need more digits than bf16 has; float64 stays float64.
        dtype = torch.float32 if x_BHLE.dtype in (torch.bfloat16, torch.float16) else x_BHLE.dtype
        even_E = torch.arange(0, width, 2, device=x_BHLE.device, dtype=dtype)
        position_L = torch.arange(self.start, self.start + length, device=x_BHLE.device, dtype=dtype)
        angle_LE = torch.outer(position_L, self.base ** (-even_E / width))
        cos_LE, sin_LE = angle_LE.cos(), angle_LE.sin()
        left, right = x_BHLE.chunk(2, dim=-1)  # meets the wider type of the tables in the products
        turned = torch.cat((left * cos_LE - right * sin_LE, right * cos_LE + left * sin_LE), dim=-1)
        return turned if turned.dtype == x_BHLE.dtype else turned.to(x_BHLE.dtype)


class Attend(nn.Module):
    """Scaled dot-product attention of heads. A module of its own, so that another way to do it can take its place."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor) -> Tensor:
        """Return [B, H, L, E]; G, the number of key and value heads, divides H."""
        groups = q_BHLE.shape[1] // k_BGLE.shape[1]
        if groups > 1 and not q_BHLE.is_cuda:  # the fast CPU kernel takes equal numbers of heads only
            k_BGLE, v_BGLE = (x.repeat_interleave(groups, dim=1) for x in (k_BGLE, v_BGLE))
            groups = 1
        return functional.scaled_dot_product_attention(
            q_BHLE, k_BGLE, v_BGLE, is_causal=self.causal, enable_gqa=groups > 1
        )


class Attention(nn.Module):
    """Grouped-query self-attention: `kv_heads` heads of keys and values, each used by heads / kv_heads queries."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        *,
        causal: bool,
        rope_base: float | None = None,
        bias: bool = False,
        head_dim: int = 0,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim or dim // heads
        self.query = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.key = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.rotary: nn.Module = nn.Identity() if rope_base is None else Rotary(rope_base)
        self.attend = Attend(causal=causal)
        self.output = nn.Linear(heads * self.head_dim, dim, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B, L, D]."""
        q_BHLE, k_BGLE, v_BGLE = (
            part(x_BLD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y_BHLE = self.attend(self.rotary(q_BHLE), self.rotary(k_BGLE), v_BGLE)
        y_BLD: Tensor = self.output(y_BHLE.transpose(1, 2).flatten(2))
        return y_BLD


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [..., D]."""
        y_BLD: Tensor = self.down(functional.silu(self.gate(x_BLD)) * self.up(x_BLD))
        return y_BLD
