"""Narrower and shorter CNNs, and ones with smaller kernels, as parts of a wide CNN that lends its weights. Torch-free.

Widths are the first channels (slimmable networks, Yu et al. 2019), kernels the middle of the larger kernel, depth is
the first blocks (Once-for-All, Cai et al. 2020). Pooling halves the image in every block, so that the classifier of a
shorter net sees another size: each depth has a classifier (and hidden layer) of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ..declare import Cut, require_alike, require_within

if TYPE_CHECKING:
    from . import Config

elastic = ("channels", "kernel_size", "hidden")
"""Keys in which nets that share weights may differ."""


def widest(configs: Sequence[Config]) -> Config:
    """Return the smallest net that all of these are parts of. Raises ValueError when there is none."""
    require_alike(configs, elastic)
    depth = max(len(config.channels) for config in configs)
    rows = [[config.channels[at] for config in configs if at < len(config.channels)] for at in range(depth)]
    return replace(
        configs[0],
        channels=tuple(max(row) for row in rows),
        kernel_size=max(config.kernel_size for config in configs),
        hidden=max(config.hidden for config in configs),
    )


def cuts(whole: Config, part: Config) -> dict[str, Cut]:
    """Return for every parameter of `part` where it lies in `whole`. Raises ValueError when it is not a part of it."""
    from . import features

    require_alike((whole, part), elastic)
    require_within(
        blocks=(len(part.channels), len(whole.channels)),
        kernel_size=(part.kernel_size, whole.kernel_size),
        hidden=(part.hidden, whole.hidden),
        **{f"channels.{at}": pair for at, pair in enumerate(zip(part.channels, whole.channels, strict=False))},
    )
    found: dict[str, Cut] = {}
    edge = (whole.kernel_size - part.kernel_size) // 2
    middle = range(edge, edge + part.kernel_size)
    for number, (inputs, outputs) in enumerate(pairwise((part.in_channels, *part.channels)), start=1):
        block = f"layers.block{number}"
        found |= _cut(f"{block}.conv.weight", range(outputs), range(inputs), middle, middle)
        found |= _cut(f"{block}.conv.bias", range(outputs))
        if part.norm == "group":
            found |= _cut(f"{block}.norm.weight", range(outputs)) | _cut(f"{block}.norm.bias", range(outputs))
    own = _same_depth(whole, part)
    width = features(part)  # flattening keeps a channel's pixels together: the first channels are the first features
    if part.hidden:
        found |= _cut("layers.hidden.linear.weight", range(part.hidden), range(width), net=own)
        found |= _cut("layers.hidden.linear.bias", range(part.hidden), net=own)
        width = part.hidden
    found |= _cut("layers.head.weight", range(part.classes), range(width), net=own)
    return found | _cut("layers.head.bias", range(part.classes), net=own)


def _same_depth(whole: Config, part: Config) -> Config | None:
    """Return the widest net that ends as `part` does; None when that is `whole`."""
    net = replace(whole, channels=whole.channels[: len(part.channels)], hidden=whole.hidden if part.hidden else 0)
    return None if net == whole else net


def _cut(parameter: str, *places: range, net: Config | None = None) -> dict[str, Cut]:
    return {parameter: Cut(parameter, places, net)}
