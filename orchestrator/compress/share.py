"""`use: share`: weights of a layer take few values, which `pack` writes as short codes; or blocks become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.compress.base import MODULE, Change, Context, State, require_unbarred
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.plan.compress import Widths

Complaint = tuple[str, str, str]


@dataclass(frozen=True)
class Config:
    """`values`: at most `clusters` values (k-means) in each linear layer and convolution; masked zeros come on top.

    `blocks`: every run of `every` neighbouring blocks (as the model declares them) uses the weights of its first.

    `fold_norms` first merges batch norms into the convolutions before them: their scales would else undo the sharing
    when the graph is optimised. `keep` names layers that stay as they are (parts of paths).
    """

    kind: Literal["values", "blocks"] = "values"
    clusters: int = 16
    fold_norms: bool = True
    keep: tuple[str, ...] = ()
    every: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 255:
            raise ValueError(f"clusters must be 2 to 255 (a code is at most one byte), not {self.clusters}")
        if self.every < 2:
            raise ValueError("every must be at least 2: how many neighbouring blocks become one")
        if self.kind == "blocks" and (self.clusters, self.fold_norms, self.keep) != (16, True, ()):
            raise ValueError("clusters, fold_norms and keep mean nothing for blocks: leave them out")
        if self.kind == "values" and self.every != 2:
            raise ValueError("every means nothing for values: leave it out")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def leaves(config: Config) -> tuple[str, ...]:
    """Return what later steps must respect."""
    return ("codes",) if config.kind == "values" else ()


def bars(config: Config) -> dict[str, str]:
    """Return what this cannot come after, and why."""
    if config.kind == "values":
        return {}
    why = "a block that becomes another one has {} of its own"
    return {"masks": why.format("zeros"), "codes": why.format("values")}


def plan_problems(config: Config, model: str, widths: Widths | None) -> list[Complaint]:
    """Return what does not work out with this model, as (key, message, hint)."""
    if config.kind == "values":
        return []
    blocks = (widths or {}).get("depth", {})
    if sum(blocks.values()) < 2:
        return [("kind", f"model {model} declares no blocks that could be one", "declare `depth` (docs/models.md)")]
    return []


def build(config: Config) -> Share:
    """Return the step."""
    return Share(config)


class Share:
    """Shares values within each layer, or blocks."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the model with few values, and which weight has which; or with fewer blocks of its own."""
        if self.config.kind == "blocks":
            return self._tied(state, context)
        from orchestrator.compress.codebooks import is_shared, quantised
        from orchestrator.compress.fold import fold_norms
        from orchestrator.compress.targets import weighted_layers
        from orchestrator.export.weights import plain_copy

        model = plain_copy(state.model)
        folded = fold_norms(model, context.calibration()[0][:2]) if self.config.fold_norms else 0
        codes = dict(state.codes)
        for name, layer in weighted_layers(model, self.config.keep).items():
            path = f"{name}.weight"
            layer.weight.data, codes[path] = quantised(layer.weight.data, state.masks.get(path), self.config.clusters)
        for path, code in codes.items():
            if not is_shared(model.get_parameter(path), code):
                raise ExportError(
                    f"merging batch norms takes {path} off the values that a share before gave it",
                    hint="set fold_norms as in that share",
                )
        covered = sum(code.numel() for code in codes.values())
        facts = {"clusters": self.config.clusters, "norms_folded": folded, "weights_shared": covered}
        return Change(State(MODULE, plain_copy(model), masks=state.masks, codes=codes), facts)

    def _tied(self, state: State, context: Context) -> Change:
        from orchestrator.compress.tie import tie_blocks
        from orchestrator.export.weights import plain_copy

        require_unbarred("share blocks", bars(self.config), state)
        model = plain_copy(state.model)
        tied = tie_blocks(model, context, self.config.every)
        return Change(State(MODULE, model), {"tied": tied})
