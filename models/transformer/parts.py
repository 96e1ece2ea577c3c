"""Smaller transformers as parts of a wide one that lends its weights. Torch-free.

The first blocks, the first numbers of the residual stream and of the feed-forward, and heads in groups: the first heads
of keys and values, and of the queries that use each the first ones (Once-for-All, Cai et al. 2020; for transformers
HAT, Wang et al. 2020). A head keeps its width, so that rotary positions turn what they turned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..declare import Cut, require_alike, require_within

if TYPE_CHECKING:
    from . import Config

elastic = ("layers", "dim", "heads", "kv_heads", "hidden")
"""Keys in which nets that share weights may differ."""
_MAY_DIFFER = (*elastic, "head_dim")  # two ways to write one width are alike
Places = range | tuple[int, ...]


def widest(configs: Sequence[Config]) -> Config:
    """Return the smallest net that all of these are parts of. Raises ValueError when there is none."""
    _require_alike(configs)
    width, dim = configs[0].head_width, max(config.dim for config in configs)
    kv_heads = max(config.kv_heads for config in configs)
    heads = kv_heads * max(config.heads // config.kv_heads for config in configs)
    return replace(
        configs[0],
        layers=max(config.layers for config in configs),
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        hidden=max(config.hidden_width for config in configs),
        head_dim=0 if heads * width == dim else width,
    )


def cuts(whole: Config, part: Config) -> dict[str, Cut]:
    """Return for every parameter of `part` where it lies in `whole`. Raises ValueError when it is not a part of it."""
    _require_alike((whole, part))
    groups = whole.heads // whole.kv_heads, part.heads // part.kv_heads
    require_within(
        layers=(part.layers, whole.layers),
        dim=(part.dim, whole.dim),
        hidden=(part.hidden_width, whole.hidden_width),
        kv_heads=(part.kv_heads, whole.kv_heads),
        **{"heads to a head of keys": (groups[1], groups[0])},
    )
    stream, hidden, words = range(part.dim), range(part.hidden_width), range(part.vocab)
    keys = range(part.kv_heads * part.head_width)
    queries = _heads([group * groups[0] + at for group in range(part.kv_heads) for at in range(groups[1])], part)
    found = _cut("layers.embedding.weight", words, stream) | _cut("layers.norm.weight", stream)
    for number in range(1, part.layers + 1):
        block = f"layers.block{number}"
        found |= _cut(f"{block}.attention_norm.weight", stream) | _cut(f"{block}.feed_forward_norm.weight", stream)
        found |= _cut(f"{block}.attention.query.weight", queries, stream)
        found |= _cut(f"{block}.attention.key.weight", keys, stream)
        found |= _cut(f"{block}.attention.value.weight", keys, stream)
        found |= _cut(f"{block}.attention.output.weight", stream, queries)
        found |= _cut(f"{block}.feed_forward.gate.weight", hidden, stream)
        found |= _cut(f"{block}.feed_forward.up.weight", hidden, stream)
        found |= _cut(f"{block}.feed_forward.down.weight", stream, hidden)
    return found | ({} if part.tied_embeddings else _cut("layers.head.weight", words, stream))


def _require_alike(configs: Sequence[Config]) -> None:
    require_alike(configs, _MAY_DIFFER)
    widths = sorted({config.head_width for config in configs})
    if len(widths) > 1:
        raise ValueError(
            f"heads are {widths[0]} and {widths[-1]} wide, and a head is never cut: write head_dim, or let dim and "
            "heads grow together"
        )


def _heads(heads: Iterable[int], config: Config) -> Places:
    """Return the places of whole heads in a row of all."""
    width = config.head_width
    places = [head * width + at for head in heads for at in range(width)]
    return range(len(places)) if places[-1] == len(places) - 1 else tuple(places)


def _cut(parameter: str, *places: Places) -> dict[str, Cut]:
    return {parameter: Cut(parameter, places)}
