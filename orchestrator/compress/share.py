"""`use: share`: each layer's weights take few different values, which `pack` then writes as short codes."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.compress.base import MODULE, Change, Context, State


@dataclass(frozen=True)
class Config:
    """At most `clusters` values (k-means) in each linear layer and convolution; masked zeros come on top.

    `fold_norms` first merges batch norms into the convolutions before them: their scales would else undo the sharing
    when the graph is optimised. `keep` names layers that stay as they are (parts of paths).
    """

    clusters: int = 16
    fold_norms: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 255:
            raise ValueError(f"clusters must be 2 to 255 (a code is at most one byte), not {self.clusters}")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def build(config: Config) -> Share:
    """Return the step."""
    return Share(config)


class Share:
    """Shares values within each layer."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the model with few values, and which weight has which."""
        from orchestrator.compress.codebooks import quantised
        from orchestrator.compress.fold import fold_norms
        from orchestrator.compress.targets import weighted_layers
        from orchestrator.export.weights import plain_copy

        model = plain_copy(state.model)
        folded = fold_norms(model, context.calibration()[0][:2]) if self.config.fold_norms else 0
        codes = {}
        for name, layer in weighted_layers(model, self.config.keep).items():
            path = f"{name}.weight"
            layer.weight.data, codes[path] = quantised(layer.weight.data, state.masks.get(path), self.config.clusters)
        covered = sum(code.numel() for code in codes.values())
        facts = {"clusters": self.config.clusters, "norms_folded": folded, "weights_shared": covered}
        return Change(State(MODULE, plain_copy(model), masks=state.masks, codes=codes), facts)
