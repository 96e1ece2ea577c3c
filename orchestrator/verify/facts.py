"""What a model has in it that `verify` must know of: dropout, norms over the batch, losses over a batch's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.plan.layout import Layout
from orchestrator.spec.job import JobSpec
from orchestrator.verify.compare import GROUPS

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5, "bf16": 2e-2}
# Adam divides a gradient by its own size: where that is rounding noise, so is the update.
ADAPTIVE_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1}
# Rank 0's running mean and spread are those of its own samples, which differ from the batch's as samples do.
BATCH_NORM_TOLERANCE = 2.0
# A balance loss over pieces of sequences is another function of the router than one over whole sequences.
PIECES_TOLERANCE = 1.0
# One process has no gathered weights to round: its bf16 twin takes other steps from the first product on. The loss is
# a mean and stays near; a small gradient may differ by its own size (measured on the built-in models: up to 0.9).
SHARD_PRECISION_TOLERANCE = 1.0


@dataclass(frozen=True)
class Facts:
    """Names of the submodules of each kind."""

    dropout: tuple[str, ...] = ()
    batch_norm: tuple[str, ...] = ()
    batch_losses: tuple[str, ...] = ()
    """Submodules that weigh or drop tokens by which others are at hand (balance losses, a capacity of experts)."""

    @property
    def partition_matters(self) -> bool:
        """Whether a sample's gradient depends on which others are in its microbatch."""
        return bool(self.batch_norm or self.batch_losses)

    def tolerances(self, job: JobSpec, precision: str, layout: Layout) -> dict[str, float]:
        """Return what a group may differ by where that is not the precision's tolerance."""
        found: dict[str, float] = {}
        if is_adaptive(job) and precision in ADAPTIVE_TOLERANCE:
            found["weights"] = ADAPTIVE_TOLERANCE[precision]
        if rounds_gathered(job, precision):
            found |= dict.fromkeys(GROUPS, SHARD_PRECISION_TOLERANCE) | {"loss": TOLERANCE["bf16"]}
        if self.batch_norm and layout.num_data_ranks > 1:
            found["buffers"] = BATCH_NORM_TOLERANCE
        if self.batch_losses and layout.context > 1:
            found |= dict.fromkeys(GROUPS, PIECES_TOLERANCE)
        return found


def look_at(job: JobSpec) -> Facts:
    """Build the job's model (without memory where it can be) and look for them."""
    from torch import nn

    from orchestrator import plugins
    from orchestrator.parallel.initialise import build_module

    on_meta = hasattr(plugins.load("models", job.model.use), "init_parameter")
    module = build_module(
        lambda: plugins.build("models", job.model.use, job.model.options), job.train.seed, on_meta=on_meta
    )
    if not isinstance(module, nn.Module):
        return Facts()
    named = list(module.named_modules())
    return Facts(
        dropout=tuple(name for name, child in named if has_dropout(child)),
        batch_norm=tuple(name for name, child in named if _is_unsynchronised(child)),
        batch_losses=tuple(name for name, child in named if _looks_at_all_tokens(child)),
    )


def has_dropout(module: object) -> bool:
    """Say whether a module draws dropout masks: a dropout layer, or a recurrent or attention layer's own."""
    from torch import nn

    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


def _is_unsynchronised(module: object) -> bool:
    from torch import nn

    return isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)


def _looks_at_all_tokens(module: object) -> bool:
    config = getattr(module, "config", None)
    return any(getattr(config, name, 0) > 0 for name in ("balance_loss", "capacity_factor"))


def is_adaptive(job: JobSpec) -> bool:
    """Say whether the optimiser divides a gradient by its own size."""
    return job.optim.use != "sgd"


def rounds_gathered(job: JobSpec, precision: str) -> bool:
    """Say whether weights are rounded to bf16 when they are gathered; never in the float64 gate."""
    return job.parallel.shard_precision == "bf16" and precision != "fp64"


def inexact(job: JobSpec, facts: Facts, precisions: list[str]) -> Iterator[str]:
    """Yield what is not compared, or to a tolerance of its own: which, why and how far."""
    own = job.train.precision
    if is_adaptive(job) and own in ADAPTIVE_TOLERANCE:
        yield (
            f"{job.optim.use} divides a gradient by its own size, which makes steps of rounding noise: weights in "
            f"{own} are held to {ADAPTIVE_TOLERANCE[own]:g}" + (", in float64 to 1e-9" if "fp64" in precisions else "")
        )
    if facts.dropout:
        yield (
            f"dropout is off here ({_some(facts.dropout)}): its masks follow the data rank, so layouts differ in it "
            "by design"
        )
    if facts.batch_norm:
        yield (
            f"batch norm takes its figures from a microbatch on one rank ({_some(facts.batch_norm)}): the one process "
            "goes through the same microbatches, so gradients and weights must agree; the running mean and spread of "
            f"rank 0 know its own samples only and are held to {BATCH_NORM_TOLERANCE:g}"
        )
    if facts.batch_losses:
        yield (
            f"experts are balanced or filled by the tokens of a microbatch on one rank ({_some(facts.batch_losses)}): "
            "the one process goes through the same microbatches, so everything must agree; under parallel.context a "
            f"rank sees pieces of sequences, which is another loss, held to {PIECES_TOLERANCE:g} (model.balance_loss=0 "
            "proves the rest)"
        )
    if own == "bf16":
        yield f"bf16 rounds every product to 8 bits: its tolerance is {TOLERANCE['bf16']:g}; the gate is float64"
    if rounds_gathered(job, own):
        yield (
            "parallel.shard_precision=bf16 rounds gathered weights, which one process does not have: in "
            f"{own} the loss is held to {TOLERANCE['bf16']:g}, all else to {SHARD_PRECISION_TOLERANCE:g}; the gate in "
            "float64 runs with whole weights"
        )
    if job.train.compile:
        yield "compile is off here: fused kernels round in another order"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
