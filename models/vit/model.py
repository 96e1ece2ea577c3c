"""The vision transformer's layers in torch. B batch, C channels, H x W pixels, L patches, D width."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..attention import Attention
from ..layered import Layered
from . import Config


class Patches(nn.Module):
    """Cuts an image into patches and says where each lies."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch = nn.Conv2d(config.in_channels, config.dim, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(torch.empty(config.patches, config.dim))
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, L, D]."""
        x_BLD: Tensor = self.patch(x_BCHW).flatten(2).transpose(1, 2) + self.position
        return x_BLD


class Block(nn.Module):
    """Attention to all patches, then a feed-forward, each on the normed input and added to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden_width
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, config.heads, config.heads, causal=False, bias=True)
        self.feed_forward_norm = nn.LayerNorm(dim)
        parts: OrderedDict[str, nn.Module] = OrderedDict(up=nn.Linear(dim, hidden), activation=nn.GELU())
        parts["down"] = nn.Linear(hidden, dim)
        self.feed_forward = nn.Sequential(parts)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B, L, D]."""
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD)))
        y_BLD: Tensor = x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))
        return y_BLD


class Mean(nn.Module):
    """The mean over all patches."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B, D]."""
        return x_BLD.mean(1)


def build_vit(config: Config) -> Layered:
    """Return patches, block1, block2, ..., norm, pool, head."""
    layers: dict[str, nn.Module] = {"patches": Patches(config)}
    for number in range(1, config.layers + 1):
        layers[f"block{number}"] = Block(config)
    layers |= {"norm": nn.LayerNorm(config.dim), "pool": Mean(), "head": nn.Linear(config.dim, config.classes)}
    return Layered(layers)
