"""What a model has in it that `verify` must know of: dropout, norms over the batch, losses over a batch's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.plan.layout import Layout
from orchestrator.spec.job import JobSpec
from orchestrator.verify.compare import GROUPS
from orchestrator.verify.layouts import Candidate

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5, "bf16": 2e-2}
# The gradient of a query or a norm is a small sum of large terms, of which bf16 keeps 8 bits. Measured on the shipped
# verify jobs under every layout of two ranks: gradients 0.43, their norm 0.028, losses 2e-3.
BF16_TOLERANCE = {"gradients": 0.5, "gradient norm": 0.1, "clipped norm": 0.1}
# Adam divides a gradient by its own size: where that is rounding noise, so is the update.
ADAPTIVE_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1}
# Rank 0's running mean and spread are those of its own samples, which differ from the batch's as samples do.
BATCH_NORM_TOLERANCE = 2.0
# The figures of a norm over the batch are rounded; an output on the border of a ReLU, or between two numbers of bf16,
# then falls to the other side, and the gradients of the norms' weights, small sums of large terms, show it. Measured on
# a ResNet of four blocks, SGD, eight seeds: gradients fp32 0.026, bf16 0.34; weights 4e-4 and 0.016.
NORMS_TOLERANCE = {
    "fp32": {"gradients": 0.1, "gradient norm": 1e-2, "clipped norm": 1e-2, "weights": 1e-2, "buffers": 1e-3},
    "bf16": {"gradients": 0.5, "gradient norm": 0.1, "clipped norm": 0.1, "weights": 0.1, "buffers": 0.1},
}
# An adaptive optimiser turns that into other weights, and so into another loss and other gradients. Measured likewise,
# AdamW: fp32 loss 3.2e-5, gradients 0.069, weights 5.3e-3, buffers 3.6e-4; bf16 gradients 1.0, weights 0.3.
ADAPTIVE_NORMS_TOLERANCE = {
    "fp32": {"loss": 1e-3, "gradients": 0.3, "weights": 5e-2, "buffers": 1e-2},
    "bf16": {"gradients": 2.0, "weights": 1.0},  # no judgement any more, and `inexact` says so
}
# Emulated on CPUs: one scale per tensor, so other samples on a rank round otherwise. Measured on a transformer of four
# blocks, two seeds, four layouts of two ranks: gradients 0.73, gradient norm 0.1, weights 0.08, loss 8e-4.
FLOAT8_TOLERANCE = {"gradients": 1.0, "gradient norm": 0.3, "clipped norm": 0.3, "weights": 0.3}
# No one process pools one layer's figures over data ranks and keeps another's apart.
MIXED_TOLERANCE = 1.0
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
    """Batch norms that know the samples of one rank only."""
    synchronised: tuple[str, ...] = ()
    """Batch norms that pool their figures over data ranks."""
    batch_losses: tuple[str, ...] = ()
    """Submodules that weigh or drop tokens by which others are at hand (balance losses, a capacity of experts)."""

    @property
    def rank_matters(self) -> bool:
        """Whether a sample's gradient depends on which others are in its microbatch on the same rank."""
        return bool(self.batch_norm or self.batch_losses)

    def pieces_of(self, candidate: Candidate, accumulate: int) -> int:
        """Return in how many passes the one process takes a step's batch, to be comparable with the candidate.

        `accumulate` is the job's own: it holds where a sample's gradient depends on no other sample.
        """
        if self.rank_matters:
            return candidate.pieces
        return candidate.passes if self.synchronised else accumulate

    def tolerances(self, job: JobSpec, precision: str, layout: Layout) -> dict[str, float]:
        """Return what a group may differ by where that is not the precision's tolerance."""
        found: dict[str, float] = dict(BF16_TOLERANCE) if precision == "bf16" else {}
        if is_adaptive(job) and precision in ADAPTIVE_TOLERANCE:
            found["weights"] = ADAPTIVE_TOLERANCE[precision]
        if self.batch_norm or self.synchronised:
            found |= norms_tolerances(job, precision)
        if job.train.float8 != "none" and precision == "bf16":
            found |= FLOAT8_TOLERANCE
        if rounds_gathered(job, precision):
            found |= dict.fromkeys(GROUPS, SHARD_PRECISION_TOLERANCE) | {"loss": TOLERANCE["bf16"]}
        if self.batch_norm and layout.num_data_ranks > 1:
            found["buffers"] = BATCH_NORM_TOLERANCE
        if self.synchronised and self.rank_matters and layout.num_data_ranks > 1:
            found |= dict.fromkeys(GROUPS, MIXED_TOLERANCE)
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
        batch_norm=tuple(name for name, child in named if _is_batch_norm(child) and not _is_synchronised(child)),
        synchronised=tuple(name for name, child in named if _is_synchronised(child)),
        batch_losses=tuple(name for name, child in named if _looks_at_all_tokens(child)),
    )


def has_dropout(module: object) -> bool:
    """Say whether a module draws dropout masks: a dropout layer, or a recurrent or attention layer's own."""
    from torch import nn

    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


def _is_batch_norm(module: object) -> bool:
    from torch import nn

    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _is_synchronised(module: object) -> bool:
    from torch import nn

    return hasattr(module, "gather_over_ranks") or isinstance(module, nn.SyncBatchNorm)


def _looks_at_all_tokens(module: object) -> bool:
    config = getattr(module, "config", None)
    return any(getattr(config, name, 0) > 0 for name in ("balance_loss", "capacity_factor"))


def is_adaptive(job: JobSpec) -> bool:
    """Say whether the optimiser divides a gradient by its own size."""
    return job.optim.use != "sgd"


def norms_tolerances(job: JobSpec, precision: str) -> dict[str, float]:
    """Return what groups may differ by in a model with norms over the batch; in float64 nothing of its own."""
    more = ADAPTIVE_NORMS_TOLERANCE if is_adaptive(job) else {}
    return NORMS_TOLERANCE.get(precision, {}) | more.get(precision, {})


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
    if facts.synchronised:
        yield _of_synchronised(facts)
    allowed = norms_tolerances(job, own)
    if allowed and (facts.batch_norm or facts.synchronised):
        held = _held(allowed)
        yield (
            "norms over the batch make much of rounding (an output on the border of a ReLU falls to the other side): "
            f"in {own} {held}; the gate is float64"
        )
    if facts.batch_losses:
        yield (
            f"experts are balanced or filled by the tokens of a microbatch on one rank ({_some(facts.batch_losses)}): "
            "the one process goes through the same microbatches, so everything must agree; under parallel.context a "
            f"rank sees pieces of sequences, which is another loss, held to {PIECES_TOLERANCE:g} (model.balance_loss=0 "
            "proves the rest)"
        )
    if own == "bf16":
        held = _held(BF16_TOLERANCE)
        yield (
            f"bf16 rounds every product to 8 bits: {held}, all else to {TOLERANCE['bf16']:g}, which shows no more than "
            "that it runs and stays near; the gate is float64"
        )
    if rounds_gathered(job, own):
        yield (
            "parallel.shard_precision=bf16 rounds gathered weights, which one process does not have: in "
            f"{own} the loss is held to {TOLERANCE['bf16']:g}, all else to {SHARD_PRECISION_TOLERANCE:g}; the gate in "
            "float64 runs with whole weights"
        )
    if job.train.float8 != "none":
        held = _held(FLOAT8_TOLERANCE)
        yield (
            "train.float8 scales a rank's whole tensor at once, so layouts round otherwise; CPUs emulate it, it is "
            f"not shown on hardware. In bf16 the loss is held to {TOLERANCE['bf16']:g}, {held}; the gate in float64 "
            "runs without it"
        )
    if job.train.compile:
        yield "compile is off here: fused kernels round in another order"


def _of_synchronised(facts: Facts) -> str:
    said = (
        f"synchronised batch norm pools the figures of a microbatch over data ranks ({_some(facts.synchronised)}): the "
        "one process accumulates over as many microbatches, so everything must agree"
    )
    if facts.rank_matters:
        said += (
            "; but other layers look at one rank's samples, and no one process does both: under data ranks everything "
            f"is held to {MIXED_TOLERANCE:g}"
        )
    return said


def _held(allowed: Mapping[str, float]) -> str:
    """Say what each group is held to; a tensor of zeros differs by 1, so from there on nothing is judged."""
    said = (f"{group} {'not judged' if most >= 1 else f'to {most:g}'}" for group, most in allowed.items())
    return ", ".join(said)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
