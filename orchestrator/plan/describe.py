"""A plan in words, a row per question: what `plan` and the head of `run` print."""

from __future__ import annotations

from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

_ATTENTION = {
    "heads": "heads: each of {} ranks takes whole sequences for its share of the heads (all-to-all)",
    "ring": "ring: keys and values go round {} ranks, each has its own piece of the queries",
}


def describe(job: JobSpec, plan: Plan) -> list[tuple[str, str]]:
    """Return (title, text) rows. Predicted figures say so."""
    batch, need = plan.batch, plan.resources
    rows = [("model", f"{job.model.use}  {_count(plan.num_params)} parameters  loss {plan.loss}")]
    if plan.data.num_samples:
        splits = ", ".join(f"{name} {count:,}" for name, count in plan.data.num_samples.items())
        rows.append(("data", f"{job.data.use}  {splits}"))
    else:
        rows.append(("data", f"{job.data.use}  (counted in the worker)"))
    rows.append(("layout", plan.layout.describe()))
    if plan.context_attention is not None:
        rows.append(("attention", _ATTENTION[plan.context_attention].format(plan.layout.context)))
    accumulate = f" x accumulate {batch.accumulate}" if batch.accumulate > 1 else ""
    split = (
        f" = {batch.num_data_ranks} data ranks{accumulate} x {batch.microbatch}"
        if batch.num_data_ranks > 1 or accumulate
        else ""
    )
    rows.append(("batch", f"{batch.global_batch} samples a step{split}"))
    if batch.total_steps:
        epochs = f" = {batch.epoch_after(batch.total_steps):.3g} epochs" if batch.num_train_samples else ""
        rows.append(("length", f"{batch.total_steps:,} steps{epochs}"))
    if plan.memory:
        memory = plan.memory
        parts = {
            "weights": memory.weights_bytes,
            "gradients": memory.gradients_bytes,
            "optimiser": memory.optimizer_bytes,
        }
        listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
        rows.append(("memory", f"{_size(memory.total_bytes)} a rank predicted: {listed}; activations not counted"))
    gpus = f" + {need.gpus_per_worker:g} GPU" if need.gpus_per_worker else ""
    how = "Ray" if plan.uses_ray else "one process, no Ray"
    rows.append(
        (
            "needs",
            f"{need.num_workers} x ({need.cpus_per_worker:g} CPU{gpus})  {how}  {need.backend}  {job.train.precision}",
        )
    )
    rows.extend(("note", note) for note in plan.notes)
    return rows


def rank_map(plan: Plan) -> list[str]:
    """Return a line per rank: its number and its coordinates on every axis that there is."""
    layout, lines = plan.layout, []
    for rank in range(layout.world_size):
        at = [f"{axis} {index}" for axis, index in layout.coordinates(rank).items() if getattr(layout, axis) > 1]
        lines.append(f"rank {rank}: {', '.join(at) or 'alone'}")
    return lines


def _count(number: int | None) -> str:
    return "unknown number of" if number is None else f"{number:,}"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
