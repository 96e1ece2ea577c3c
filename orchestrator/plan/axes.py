"""Can the model be split the way the layout asks? What it does not support is a Problem that names what fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import plugins
from orchestrator.errors import Problem
from orchestrator.plan.layout import Layout
from orchestrator.plan.stages import (
    LOOP,
    SINGLE,
    Stages,
    V,
    balanced_cut,
    cut_by_counts,
    cut_by_names,
    stage_ranks,
)
from orchestrator.spec.job import JobSpec

_KEYS_OF_AXIS = {
    "pipeline": ("schedule", "microbatches", "stages_per_rank", "cuts"),
    "tensor": ("sequence",),
    "context": ("context_attention",),
    "shard": ("reshard_after_forward",),
}


def plan_stages(job: JobSpec, layout: Layout, problems: list[Problem]) -> Stages | None:
    """Return the cut of the pipeline; None without one, or with a problem added."""
    degree, wanted = layout.pipeline, job.parallel
    if degree == 1:
        return None
    plugin, config = _declared(job, "layer_names", "layer_costs")
    if plugin is None:
        problems.append(_unsupported(job, "parallel.pipeline", "layers by name"))
        return None
    names = plugin.layer_names(config)
    microbatches = wanted.microbatches or 2 * degree
    per_rank = 1 if wanted.schedule in SINGLE else 2 if wanted.schedule in V else wanted.stages_per_rank or 2
    found = _schedule_problems(job, layout, per_rank, microbatches, len(names))
    cut: tuple[tuple[str, ...], ...] = ()
    try:
        if wanted.cuts:
            cut = cut_by_names(names, wanted.cuts)
        elif not found:
            cut = cut_by_counts(names, balanced_cut(plugin.layer_costs(config), degree * per_rank))
    except ValueError as error:
        found.append(Problem("parallel.cuts", str(error), "name layers in order", "bad-cut"))
    if wanted.cuts and cut and len(cut) != degree * per_rank:
        hint = f"give {degree * per_rank - 1} layers"
        found.append(
            Problem("parallel.cuts", f"makes {len(cut)} stages, {degree * per_rank} are needed", hint, "bad-cut")
        )
    problems += found
    return None if found else Stages(cut, stage_ranks(wanted.schedule, degree, len(cut)), wanted.schedule, microbatches)


def _schedule_problems(
    job: JobSpec, layout: Layout, per_rank: int, microbatches: int, num_layers: int
) -> list[Problem]:
    wanted, degree = job.parallel, layout.pipeline
    found: list[Problem] = []
    if wanted.stages_per_rank is not None and wanted.stages_per_rank != per_rank:
        message = f"schedule {wanted.schedule} gives every rank {per_rank} stage{'s' if per_rank > 1 else ''}"
        found.append(
            Problem("parallel.stages_per_rank", message, f"leave it out, or choose {', '.join(LOOP)}", "stages")
        )
    if degree * per_rank > num_layers:
        message = f"{degree} ranks x {per_rank} stages = {degree * per_rank} stages, the model has {num_layers} layers"
        found.append(Problem("parallel.pipeline", message, f"fits: up to {num_layers // per_rank}", "too-many-stages"))
    if job.train.accumulate != 1:
        hint = "set train.accumulate=1 and raise parallel.microbatches"
        found.append(Problem("train.accumulate", "a pipeline accumulates over its microbatches", hint, "accumulate"))
    each = job.train.batch_size // layout.num_data_ranks
    if each % microbatches:
        fits = [str(number) for number in range(1, each + 1) if each % number == 0]
        message = f"{microbatches} microbatches do not divide the {each} samples of a data rank"
        found.append(Problem("parallel.microbatches", message, f"fits: {', '.join(fits)}", "microbatches"))
    if wanted.schedule in ("interleaved_1f1b", "interleaved_zero_bubble", *V) and microbatches % degree:
        message = f"{microbatches} microbatches are not a multiple of the {degree} pipeline ranks"
        found.append(Problem("parallel.microbatches", message, f"set it to a multiple of {degree}", "microbatches"))
    if wanted.schedule == "dualpipe_v" and microbatches < 2 * degree:
        message = f"dualpipe_v needs at least {2 * degree} microbatches, not {microbatches}"
        found.append(Problem("parallel.microbatches", message, f"set it to {2 * degree} or more", "microbatches"))
    return found


def _declared(job: JobSpec, *names: str) -> tuple[Any, Any]:
    """Return (plug-in, its config) when the model declares all of `names`, else (None, None)."""
    kind = plugins.light_config("models", job.model.use)
    plugin: Any = plugins.load("models", job.model.use) if kind is not None else None
    if kind is None or not all(hasattr(plugin, name) for name in names):
        return None, None
    return plugin, plugins.build_config(kind, job.model.options)


def _unsupported(job: JobSpec, path: str, what: str) -> Problem:
    message = f"model {job.model.use} does not declare its {what}, so it cannot be split that way"
    return Problem(path, message, f"set {path}=1, or declare them (docs/models.md)", "axis-unsupported")


def unused_keys(job: JobSpec, layout: Layout) -> list[str]:
    """Return a note for every key of `parallel` that was given and does nothing in this layout."""
    given = job.parallel.model_fields_set
    fields = type(job.parallel).model_fields
    if given >= set(fields):  # read back from a whole dump: what differs from the default was given
        given = {key for key in given if getattr(job.parallel, key) != fields[key].default}
    return [
        f"parallel.{key} has no effect: parallel.{axis} is 1"
        for axis, keys in _KEYS_OF_AXIS.items()
        for key in keys
        if key in given and getattr(layout, axis) == 1
    ]


def axis_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    """Return what keeps this model from being split over the layout's tensor and expert axes."""
    return [
        *_expert_problems(job, layout),
        *_context_problems(job, layout),
        *_tensor_problems(job, layout),
        *_recompute_problems(job),
        *_chunk_problems(job),
    ]


def context_attention(job: JobSpec, layout: Layout) -> str | None:
    """Return how attention brings pieces of sequences together: heads or ring; None without the context axis."""
    if layout.context == 1:
        return None
    wanted = job.parallel.context_attention
    return wanted if wanted != "auto" else "ring" if _undivided_heads(job, layout) else "heads"


def _context_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    if layout.context == 1:
        return []
    plugin, config = _declared(job, "attention_layers")
    if plugin is None:
        return [_unsupported(job, "parallel.context", "attention_layers")]
    found: list[Problem] = []
    if context_attention(job, layout) == "heads":
        found += [_heads_problem(name, value, layout) for name, value in _undivided_heads(job, layout).items()]
    length = plugin.shape(config).inputs[0]
    # With sequence parallelism the tensor ranks cut each piece once more.
    pieces = layout.context * (layout.tensor if job.parallel.sequence else 1)
    if length % pieces:
        found.append(_limit_problem("sequence length", length, pieces, "parallel.context"))
    return found


def _undivided_heads(job: JobSpec, layout: Layout) -> dict[str, int]:
    """Return the numbers of heads that cannot be dealt out over the context ranks, by name."""
    plugin, config = _declared(job, "tensor_limits")
    limits: Mapping[str, int] = plugin.tensor_limits(config) if plugin is not None else {}
    pieces = layout.context * layout.tensor
    return {name: limits[name] for name in ("heads", "kv_heads") if limits.get(name, pieces) % pieces}


def _heads_problem(name: str, value: int, layout: Layout) -> Problem:
    beside = layout.tensor
    fits = [str(number) for number in range(1, value + 1) if value % (number * beside) == 0]
    product = f"{layout.context} x tensor {beside} = {layout.context * beside}" if beside > 1 else f"{layout.context}"
    hint = "set parallel.context_attention=ring" + (f"; or fits: {', '.join(fits)}" if fits else "")
    message = f"{product} does not divide the model's {name} = {value}, which context_attention heads needs"
    return Problem("parallel.context", message, hint, "axis-indivisible")


def _recompute_problems(job: JobSpec) -> list[Problem]:
    if job.train.activation_checkpoint == "none" or _declared(job, "shard_units")[0] is not None:
        return []
    message = f"model {job.model.use} does not declare its blocks (shard_units)"
    return [Problem("train.activation_checkpoint", message, "set it to none, or declare them", "no-blocks")]


def _chunk_problems(job: JobSpec) -> list[Problem]:
    if job.train.loss_chunks == 1 or _declared(job, "layer_names")[0] is not None:
        return []
    message = f"model {job.model.use} does not declare its layers by name (layer_names), so its last one is not known"
    return [Problem("train.loss_chunks", message, "leave it out, or declare them (docs/models.md)", "no-layers")]


def _expert_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    if layout.expert == 1:
        return []
    plugin, config = _declared(job, "expert_layers", "num_experts")
    if plugin is None:
        return [_unsupported(job, "parallel.expert", "expert_layers")]
    found: list[Problem] = []
    for what, value in (("experts", plugin.num_experts(config)), ("data ranks", layout.num_data_ranks)):
        if value % layout.expert:
            fits = ", ".join(str(number) for number in range(1, value + 1) if value % number == 0)
            message = f"{layout.expert} does not divide the {value} {what}"
            found.append(Problem("parallel.expert", message, f"fits: {fits}", "axis-indivisible"))
    return found


def _tensor_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    if layout.tensor == 1:
        return []
    plugin, config = _declared(job, "tensor_plan")
    if plugin is None:
        return [_unsupported(job, "parallel.tensor", "tensor_plan")]
    limits: Mapping[str, int] = plugin.tensor_limits(config) if hasattr(plugin, "tensor_limits") else {}
    return [_limit_problem(name, value, layout.tensor) for name, value in limits.items() if value % layout.tensor]


def _limit_problem(name: str, value: int, degree: int, path: str = "parallel.tensor") -> Problem:
    fits = ", ".join(str(number) for number in range(1, value + 1) if value % number == 0)
    return Problem(
        path,
        f"{degree} does not divide the model's {name} = {value}",
        f"fits: {fits}; or change the model",
        "axis-indivisible",
    )
