"""Narrower residual networks, and ones with fewer blocks in a stage, as parts of a wide one. Torch-free.

The first channels of every stage and the first blocks of each (Once-for-All, Cai et al. 2020). The figures of a batch
norm are no part of what is shared: every net takes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from ..declare import Cut, require_alike, require_within

if TYPE_CHECKING:
    from . import Config

elastic = ("channels", "depths")
"""Keys in which nets that share weights may differ."""


def widest(configs: Sequence[Config]) -> Config:
    """Return the smallest net that all of these are parts of. Raises ValueError when there is none."""
    _require_alike(configs)
    channels = zip(*(config.channels for config in configs), strict=True)
    depths = zip(*(config.depths for config in configs), strict=True)
    return replace(configs[0], channels=tuple(map(max, channels)), depths=tuple(map(max, depths)))


def cuts(whole: Config, part: Config) -> dict[str, Cut]:
    """Return for every parameter of `part` where it lies in `whole`. Raises ValueError when it is not a part of it."""
    _require_alike((whole, part))
    for key in elastic:
        pairs = enumerate(zip(getattr(part, key), getattr(whole, key), strict=True))
        require_within(**{f"{key}.{at}": pair for at, pair in pairs})
    width = part.channels[0]
    found = _conv("stem", "stem", "conv", "norm", width, part.in_channels, 3)
    mine, theirs = ([0, *accumulate(config.depths)] for config in (part, whole))
    inputs = width
    for stage, (outputs, depth) in enumerate(zip(part.channels, part.depths, strict=True)):
        for number in range(1, depth + 1):
            block, source = f"block{mine[stage] + number}", f"block{theirs[stage] + number}"
            found |= _conv(block, source, "conv1", "norm1", outputs, inputs, 3)
            found |= _conv(block, source, "conv2", "norm2", outputs, outputs, 3)
            if stage > 0 and number == 1:
                found |= _conv(block, source, "shortcut.conv", "shortcut.norm", outputs, inputs, 1)
            inputs = outputs
    found |= _cut("head.weight", "head.weight", range(part.classes), range(inputs))
    return found | _cut("head.bias", "head.bias", range(part.classes))


def _require_alike(configs: Sequence[Config]) -> None:
    require_alike(configs, elastic)
    stages = sorted({len(config.channels) for config in configs})
    if len(stages) > 1:
        raise ValueError(f"there are nets of {stages[0]} and {stages[-1]} stages: give all of them as many")


def _conv(block: str, source: str, conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> dict[str, Cut]:
    """Return the cuts of a convolution without bias and of the norm after it."""
    places = (range(outputs), range(inputs), range(kernel), range(kernel))
    found = _cut(f"{block}.{conv}.weight", f"{source}.{conv}.weight", *places)
    for name in ("weight", "bias"):
        found |= _cut(f"{block}.{norm}.{name}", f"{source}.{norm}.{name}", range(outputs))
    return found


def _cut(name: str, source: str, *places: range) -> dict[str, Cut]:
    return {f"layers.{name}": Cut(f"layers.{source}", places)}
