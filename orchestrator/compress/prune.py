"""`use: prune`: takes the least important channels out of the model, so that it is physically smaller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.compress.base import MODULE, Change, Context, State
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.plan.compress import Widths

Complaint = tuple[str, str, str]


@dataclass(frozen=True)
class Config:
    """`ratio` of the channels go, by `importance`; what is left is a multiple of `multiple_of`.

    `rounds` above 1 takes them out little by little, with `recover_epochs` of training between. `keep` names layers
    that stay as they are (parts of their paths); the model's last layer always does.
    """

    kind: Literal["channels"] = "channels"
    ratio: float = 0.5
    importance: Literal["magnitude", "taylor", "random"] = "magnitude"
    multiple_of: int = 8
    rounds: int = 1
    recover_epochs: float = 1.0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must be above 0 and below 1 (1 would empty every layer), not {self.ratio}")
        if self.multiple_of < 1 or self.rounds < 1 or self.recover_epochs <= 0:
            raise ValueError("multiple_of and rounds must be at least 1, recover_epochs above 0")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def kept_width(width: int, ratio: float, multiple_of: int) -> int:
    """Return how many of `width` channels stay: at least the wished share, up to a whole multiple."""
    left = width - int(width * ratio)
    return min(width, math.ceil(left / multiple_of) * multiple_of)


def plan_problems(config: Config, model: str, widths: Widths | None) -> list[Complaint]:
    """Return what does not work out with this model, as (key, message, hint)."""
    if widths is None:
        return []
    mine: Mapping[str, int] = widths.get(config.kind, {})
    if not mine:
        kinds = ", ".join(widths) or "nothing"
        return [("kind", f"model {model} has no {config.kind} that can be pruned", f"it has: {kinds}")]
    tight = {name: width for name, width in mine.items() if width - int(width * config.ratio) < 1}
    if tight:
        name, width = next(iter(tight.items()))
        return [("ratio", f"{config.ratio:g} empties {name}, which has {width}", f"at most {1 - 1 / width:.3g}")]
    idle = [name for name, width in mine.items() if kept_width(width, config.ratio, config.multiple_of) == width]
    if len(idle) == len(mine):
        narrow = min(mine.values())
        message = f"{config.multiple_of} leaves every layer as it is: the narrowest has {narrow}"
        return [("multiple_of", message, "set multiple_of=1, or a larger ratio")]
    return []


def build(config: Config) -> Prune:
    """Return the step."""
    return Prune(config)


class Prune:
    """Structural pruning through the dependency graph: what belongs together (residuals, norms) goes together."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return a narrower model."""
        from orchestrator.compress.channels import prune_channels

        if state.masks:
            raise ExportError("prune after masks: the masks would not fit the narrower weights", hint="prune first")
        before = sum(parameter.numel() for parameter in state.model.parameters())
        model = prune_channels(state.model, self.config, context)
        after = sum(parameter.numel() for parameter in model.parameters())
        return Change(State(MODULE, model), {"params_before": before, "params_after": after})
