"""`use: lowrank`: each layer's matrix becomes a product of two thin ones, exact where inputs really go."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.compress.base import MODULE, Change, Context, State, require_unbarred


@dataclass(frozen=True)
class Config:
    """`ratio` of the weights of each linear layer and convolution go, by a truncated singular value decomposition.

    `whiten` weighs directions by how strongly the calibration samples use them; without, all count alike. `keep` names
    layers that stay as they are (parts of paths); the model's last layer always does. Needs `finetune` after it.
    """

    ratio: float = 0.5
    whiten: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must be above 0 and below 1 (1 would leave no rank), not {self.ratio}")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def leaves(config: Config) -> tuple[str, ...]:
    """Return what later steps must respect."""
    return ()


def bars(config: Config) -> dict[str, str]:
    """Return what this cannot come after, and why."""
    why = "a product of matrices keeps no {}"
    return {"masks": why.format("zeros"), "codes": why.format("values in common")}


def build(config: Config) -> LowRank:
    """Return the step."""
    return LowRank(config)


class LowRank:
    """Factorises layer by layer."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the model of thin layers. Raises ExportError where masks or codebooks would be lost."""
        from orchestrator.compress.factors import factorise

        require_unbarred("lowrank", bars(self.config), state)
        model, ranks, small = factorise(state.model, self.config, context)
        notes = (f"left as they are, too small to gain: {', '.join(small)}",) if small else ()
        return Change(State(MODULE, model), {"ranks": ranks}, notes)
