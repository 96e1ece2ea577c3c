"""`use: prune`: takes the least important parts out of the model, or puts zeros in place of its least weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import plugins
from orchestrator.compress.base import MODULE, Change, Context, State, require_unbarred

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.plan.compress import Widths
    from orchestrator.plan.layout import Layout
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]
MASKS = ("unstructured", "2:4")
_LEAST_A_LAYER = 8
_IMPORTANCE = {"depth": ("influence", "random")}
_WEIGHTS = ("magnitude", "taylor", "random")


@dataclass(frozen=True)
class Config:
    """`ratio` of the parts of a `kind` go, the least important first. `keep` names layers that stay (parts of paths).

    Physically smaller: `channels` of convolutions (what is left is a multiple of `multiple_of`), `mlp` (the width of
    feed-forwards, likewise), `heads` of attention, `depth` (whole blocks). Zeros only, for `pack` to leave out:
    `unstructured` (the least weights of the whole model) and `2:4` (two of every four inputs in a row, ratio 0.5);
    `update: hessian` lets the weights that stay make up for the zeros. `rounds` above 1 takes things out little by
    little, with `recover_epochs` of training between, on the job's data ranks or on `replicate` x `shard` of its own.

    `importance`: `auto` is magnitude, and for depth `influence` (how little a block turns what goes through it);
    `taylor` is weight times gradient, `random` a control. The model's last layer keeps its width.
    """

    kind: Literal["channels", "mlp", "heads", "depth", "unstructured", "2:4"] = "channels"
    ratio: float = 0.5
    importance: Literal["auto", "magnitude", "taylor", "influence", "random"] = "auto"
    multiple_of: int = 8
    rounds: int = 1
    recover_epochs: float = 1.0
    update: Literal["none", "hessian"] = "none"
    keep: tuple[str, ...] = ()
    replicate: int | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must be above 0 and below 1 (1 would empty every layer), not {self.ratio}")
        if self.multiple_of < 1 or self.rounds < 1 or self.recover_epochs <= 0:
            raise ValueError("multiple_of and rounds must be at least 1, recover_epochs above 0")
        if any(degree is not None and degree < 1 for degree in (self.replicate, self.shard)):
            raise ValueError("replicate and shard must be at least 1")
        if self.rounds == 1 and (self.replicate or self.shard):
            raise ValueError("replicate and shard are for the training between rounds, and one round has none")
        if self.rounds == 1 and self.recover_epochs != 1:
            raise ValueError("recover_epochs is for the training between rounds, and one round has none")
        allowed = _IMPORTANCE.get(self.kind, _WEIGHTS)
        if self.importance == "auto":
            object.__setattr__(self, "importance", allowed[0])
        if self.importance not in allowed:
            raise ValueError(f"importance of {self.kind} must be {', '.join(allowed)}, not {self.importance}")
        if self.kind not in ("channels", "mlp") and self.multiple_of != 8:
            raise ValueError(f"multiple_of means nothing for {self.kind}: leave it out")
        if self.kind not in MASKS and self.update != "none":
            raise ValueError(f"update: {self.update} is for {' and '.join(MASKS)}, not {self.kind}")
        if self.kind == "2:4" and (self.ratio != 0.5 or self.rounds > 1):
            raise ValueError("2:4 takes out half, in one round: leave ratio and rounds out")
        if self.update == "hessian" and self.importance != "magnitude":
            raise ValueError("update: hessian chooses by its own measure: leave importance out")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def leaves(config: Config) -> tuple[str, ...]:
    """Return what later steps must respect."""
    return ("masks",) if config.kind in MASKS else ()


def bars(config: Config) -> dict[str, str]:
    """Return what this cannot come after, and why."""
    found = {"codes": "weights would no longer have values in common"}
    return found if config.kind in MASKS else found | {"masks": "the masks would not fit the narrower weights"}


def kept_width(width: int, ratio: float, multiple_of: int) -> int:
    """Return how many of `width` parts stay: at least the wished share, up to a whole multiple."""
    left = width - int(width * ratio)
    return min(width, math.ceil(left / multiple_of) * multiple_of)


def plan_problems(config: Config, model: str, widths: Widths | None) -> list[Complaint]:
    """Return what does not work out with this model, as (key, message, hint)."""
    if config.kind in MASKS or (widths is None and config.kind == "channels"):
        return []
    if widths is None:
        message = f"model {model} does not declare `prunable` and `coupled`, so its {config.kind} cannot be pruned"
        return [("kind", message, "declare them (docs/models.md), or: channels, " + ", ".join(MASKS))]
    mine: Mapping[str, int] = widths.get(config.kind, {})
    if not mine:
        kinds = ", ".join([*widths, *MASKS])
        return [("kind", f"model {model} has no {config.kind} that can be pruned", f"it has: {kinds}")]
    tight = {name: width for name, width in mine.items() if width - int(width * config.ratio) < 1}
    if tight:
        name, width = next(iter(tight.items()))
        return [("ratio", f"{config.ratio:g} empties {name}, which has {width}", f"at most {1 - 1 / width:.3g}")]
    unit = config.multiple_of if config.kind in ("channels", "mlp") else 1
    idle = [name for name, width in mine.items() if kept_width(width, config.ratio, unit) == width]
    if len(idle) < len(mine):
        return []
    narrow = min(mine.values())
    if unit == 1:
        most = max(mine.values())
        return [("ratio", f"{config.ratio:g} takes none of {most} {config.kind}", f"at least {1 / most:.3g}")]
    message = f"{unit} leaves every layer as it is: the narrowest has {narrow}"
    return [("multiple_of", message, "set multiple_of=1, or a larger ratio")]


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return why a share of all weights leaves layers without any, as (key, message, hint).

    A model says what its layers hold; a layer may be several tensors (seven in a transformer's block), each of which
    keeps one weight at least.
    """
    light = plugins.light_config("models", job.model.use)
    model: Any = plugins.load("models", job.model.use) if light is not None else None
    if config.kind != "unstructured" or not hasattr(model, "layer_costs"):
        return []
    costs = model.layer_costs(plugins.build_config(model.Config, job.model.options))
    held = [weights for _, weights in costs if weights]
    least = _LEAST_A_LAYER * len(held)
    left = sum(held) - int(sum(held) * config.ratio)
    if left >= least:
        return []
    message = f"{config.ratio:g} leaves {left} of {sum(held):,} weights for {len(held)} layers: some would have none"
    return [("ratio", message, f"at most {floor(1e4 * (1 - least / sum(held))) / 1e4:g}")]


def follow_problems(config: Config, before: Sequence[tuple[str, Any]], job: JobSpec) -> list[Complaint]:
    """Return why this cannot come after the steps `before`, (name, config) each, as (key, message, hint).

    The parts that a model declares are slices of its layers; `lowrank` makes other layers of all but those it keeps.
    """
    kept = [thin.keep for use, thin in before if use == "lowrank"]
    light = plugins.light_config("models", job.model.use)
    model: Any = plugins.load("models", job.model.use) if light is not None else None
    if config.kind not in ("mlp", "heads") or not kept or not hasattr(model, "coupled"):
        return []

    def is_thin(part: Any) -> bool:
        layer = part.parameter.rpartition(".")[0]
        return part.index is None and any(not any(word in layer for word in keep) for keep in kept)

    groups = model.coupled(plugins.build_config(model.Config, job.model.options)).get(config.kind, {})
    thin = [[is_thin(part) for part in slices] for slices in groups.values()]
    if any(not any(each) for each in thin) and not any(any(each) and not all(each) for each in thin):
        return []
    message = (
        f"prune {config.kind} cannot come after lowrank: of the layers it narrows, two thin ones each have been made"
    )
    return [("", message, "move it before lowrank")]


def layout_problems(config: Config, job: JobSpec, layout: Layout) -> list[Complaint]:
    """Return why the training between rounds cannot run under the job's layout, as (key, message, hint)."""
    from orchestrator.compress.finetune import rank_problems

    return rank_problems(config, job.train.batch_size, layout) if config.rounds > 1 else []


def recover_between(
    model: nn.Module, config: Config, context: Context, masks: Mapping[str, Tensor] | None = None
) -> None:
    """Train between two rounds, in place."""
    from orchestrator.compress.finetune import training_layout
    from orchestrator.compress.recover import recover

    layout = training_layout(config, context.layout)
    recover(model, context, epochs=config.recover_epochs, masks=masks, layout=layout)


def build(config: Config) -> Prune:
    """Return the step."""
    return Prune(config)


class Prune:
    """What belongs together (residuals, norms, heads of queries and keys) goes together."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return a narrower model, or one with masks."""
        require_unbarred("prune", bars(self.config), state)
        if self.config.kind in MASKS:
            return self._masked(state, context)
        before = sum(parameter.numel() for parameter in state.model.parameters())
        model = self._narrower(state, context)
        after = sum(parameter.numel() for parameter in model.parameters())
        return Change(
            State(MODULE, model), {"params_before": before, "params_after": after}, self._notes(state, context)
        )

    def _notes(self, state: State, context: Context) -> tuple[str, ...]:
        if self.config.kind == "channels":
            return ()
        from orchestrator.compress.structure import passed_over

        names = passed_over(state.model, context, self.config)
        return (f"not pruned, a step before has made other layers of them: {', '.join(names)}",) if names else ()

    def control(self, state: State, context: Context) -> Change | None:
        """Return the same training between rounds of a model that nothing was done to; None when there is none."""
        from orchestrator.export.weights import plain_copy

        if self.config.rounds == 1:
            return None
        model = plain_copy(state.model)
        for _ in range(self.config.rounds - 1):
            recover_between(model, self.config, context)
        return Change(State(MODULE, plain_copy(model)))

    def _narrower(self, state: State, context: Context) -> nn.Module:
        if self.config.kind == "channels":
            from orchestrator.compress.channels import prune_channels

            return prune_channels(state.model, self.config, context)
        from orchestrator.compress.structure import prune_structure

        return prune_structure(state.model, self.config, context)

    def _masked(self, state: State, context: Context) -> Change:
        from orchestrator.compress.masks import masked_layers, prune_weights

        model, masks = prune_weights(state.model, self.config, context, state.masks)
        _, odd = masked_layers(state.model, self.config)
        zeros = sum(int((~mask).sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        if self.config.kind == "2:4" and _is_kept_so(context.job):
            from orchestrator.compress.sparse import require_fit

            require_fit(model)  # now, before other steps train for hours
        notes = (f"2:4 leaves out {', '.join(odd)}: inputs are no multiple of 4",) if odd else ()
        facts = {"zeros": zeros, "maskable": total, "sparsity": zeros / total}
        return Change(State(MODULE, model, masks=masks), facts, notes)


def _is_kept_so(job: JobSpec) -> bool:
    """Say whether the job writes a file that keeps two of every four weights."""
    return any(step.use == "quantise" and step.options.get("scheme") == "2:4" for step in job.compress.steps)
