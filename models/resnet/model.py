"""The residual network's layers in torch. B batch, C channels, H x W pixels."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..layered import Layered
from ..norms import GroupNorm, SyncBatchNorm2d
from . import BlockSize, Config, block_sizes, norm_groups


class BasicBlock(nn.Module):
    """Two convolutions and the way past them."""

    def __init__(self, size: BlockSize, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(size.inputs, size.outputs, 3, stride=size.stride, padding=1, bias=False)
        self.norm1 = _norm(norm, size.outputs)
        self.conv2 = nn.Conv2d(size.outputs, size.outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, size.outputs)
        self.activation = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if size.has_shortcut:
            conv = nn.Conv2d(size.inputs, size.outputs, 1, stride=size.stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=_norm(norm, size.outputs)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, outputs, H / stride, W / stride]."""
        y_BCHW = self.activation(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        out_BCHW: Tensor = self.activation(y_BCHW + self.shortcut(x_BCHW))
        return out_BCHW


def build_resnet(config: Config) -> Layered:
    """Return stem, block1, block2, ..., pool, head."""
    width = config.channels[0]
    conv = nn.Conv2d(config.in_channels, width, 3, padding=1, bias=False)
    stem = nn.Sequential(OrderedDict(conv=conv, norm=_norm(config.norm, width), activation=nn.ReLU()))
    layers: dict[str, nn.Module] = {"stem": stem}
    for number, size in enumerate(block_sizes(config), start=1):
        layers[f"block{number}"] = BasicBlock(size, config.norm)
    layers["pool"] = nn.Sequential(OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    layers["head"] = nn.Linear(config.channels[-1], config.classes)
    return Layered(layers)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return GroupNorm(norm_groups(channels), channels)
    return SyncBatchNorm2d(channels) if kind == "sync_batch" else nn.BatchNorm2d(channels)
