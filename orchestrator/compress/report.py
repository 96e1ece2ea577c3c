"""How a compression is told: table for the terminal, metrics and files for the tracking store, `compress.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.compress.pipeline import Outcome, StepReport
from orchestrator.compress.timing import NOISY

_MIB = 1 << 20
_KINDS = {
    "integer_operators": "compute on integers",
    "float8_operators": "multiply in float8",
    "sparse_operators": "keep two of every four weights",
}


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the content of compress.json."""
    content = asdict(outcome) | {"folder": str(outcome.folder), "metrics": metrics(outcome)}
    return {"status": "ok" if outcome.ok else "failed", **content, "table": table(outcome)}


def metrics(outcome: Outcome) -> dict[str, float]:
    """Return flat metrics: `compress/2_finetune/val/accuracy`, `compress/size_ratio`, `compress/speedup_b1_t1`."""
    found: dict[str, float] = {}
    for step in (outcome.baseline, *outcome.steps):
        place = f"compress/{step.name}"
        found |= {f"{place}/{name}": value for name, value in step.metrics.items()}
        found |= {f"{place}/{name}": getattr(step, name) for name in ("size_bytes", "params", "seconds")}
    found |= _checked(outcome.checked)
    for row in outcome.timing:
        place = f"b{row['batch']}_t{row['threads']}"
        for name in ("speedup", "speedup_runtime", "speedup_dense", "ms"):
            if name in row:
                found[f"compress/{name}_{place}"] = row[name]
    for kind, figures in outcome.processes.items():
        found |= {f"compress/{name}_{kind}": value for name, value in figures.items()}
    found |= {f"compress/control/{name}": value for name, value in outcome.control.items()}
    found["compress/seconds"] = outcome.seconds
    return {name: float(value) for name, value in found.items()}


def _checked(checked: Mapping[str, Any]) -> dict[str, float]:
    names = (
        "size_bytes",
        "size_ratio",
        "coverage",
        "integer_operators",
        "float8_operators",
        "sparse_operators",
        "restored_bytes",
        "accuracy_delta",
        "loss_delta",
    )
    found = {f"compress/{name}": checked[name] for name in names if name in checked}
    split = checked.get("split", "test")
    found |= {f"compress/{split}/{name}": value for name, value in checked.get("metrics", {}).items()}
    return found | {f"compress/{name}": value for name, value in checked.get("fidelity", {}).items()}


def table(outcome: Outcome) -> list[str]:
    """Return lines for a terminal: a row a step, then what the checked file does, then warnings."""
    lines = [f"{'step':<16} {'bytes':>12} {'x smaller':>9} {'parameters':>11}  quality (validation)      seconds"]
    for step in (outcome.baseline, *outcome.steps):
        lines.append(_row(step, outcome.baseline.size_bytes))
        lines += _layer_rows(step)
    if outcome.error:
        lines.append(f"FAILED: {outcome.error}")
        lines += [f"  {outcome.hint}"] if outcome.hint else []
    else:
        lines += _file_lines(outcome)
    return lines + [f"WARNING: {note}" for note in outcome.notes]


def _row(step: StepReport, before: int) -> str:
    shown = ", ".join(f"{name.rpartition('/')[2]} {value:.4f}" for name, value in sorted(step.metrics.items()))
    ratio = before / step.size_bytes
    return f"{step.name:<16} {step.size_bytes:>12,} {ratio:>9.2f} {step.params:>11,}  {shown:<24} {step.seconds:>8.1f}"


def _layer_rows(step: StepReport) -> list[str]:
    """Return a row for every layer of mixed precision: its bits, and what fewer would add to the loss by itself."""
    rows = step.facts.get("layers", ())
    if not rows:
        return []
    found = [f"    {'layer':<40} {'weights':>10} {'bits':>4}  validation loss added when it alone has fewer bits"]
    for row in rows:
        losses = ", ".join(f"{bits}: {loss:+.5f}" for bits, loss in sorted(row["losses"].items(), reverse=True))
        found.append(f"    {row['name']:<40} {row['weights']:>10,} {row['bits']:>4}  {losses}")
    return found


def _file_lines(outcome: Outcome) -> list[str]:
    checked = outcome.checked
    lines = [f"from the file, {checked['samples']} {checked['split']} samples:"]
    for name, value in checked["metrics"].items():
        before = checked.get("baseline", {}).get(name)
        was = f" (before: {before:.4f}, difference {value - before:+.4f})" if before is not None else ""
        lines.append(f"  {name} {value:.4f}{was}")
    if "left_out" in checked:
        lines.append(f"  {checked['left_out']}")
    lines.append(f"  {checked['size_bytes']:,} bytes in all files needed, {checked['size_ratio']:.2f} x smaller")
    if "restored_bytes" in checked:
        lines.append(f"  storage: restored bit for bit to {checked['restored_bytes']:,} bytes, then run as timed below")
    for name, kind in _KINDS.items():
        if checked.get(name):
            lines.append(f"  {checked[name]} operators {kind}, {checked['coverage']:.1%} of the weights")
    lines += [_timing_line(row) for row in outcome.timing]
    if "eager" in outcome.processes and "candidate" in outcome.processes:
        old, new = outcome.processes["eager"], outcome.processes["candidate"]
        lines.append(
            f"  process: {new['peak_rss_bytes'] / _MIB:.0f} MiB (eager fp32: {old['peak_rss_bytes'] / _MIB:.0f}), "
            f"ready in {new['ready_s']:.2f} s ({old['ready_s']:.2f})"
        )
        if "peak_gpu_bytes" in new:
            on_gpu = [kind["peak_gpu_bytes"] / _MIB for kind in (new, old)]
            lines.append(f"  GPU memory: {on_gpu[0]:.1f} MiB (eager fp32: {on_gpu[1]:.1f})")
    for name, value in outcome.control.items():
        lines.append(f"  control, same finetuning without compression: {name} {value:.4f}")
    return lines


def _timing_line(row: Mapping[str, Any]) -> str:
    where = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    place = f"  batch {row['batch']}, {'on the GPU' if row.get('target') == 'cuda' else where}:"
    if row["verdict"] != "ok":
        again = f" (the same file twice differs by {row['noise']:.0%})" if row["verdict"] == NOISY else ""
        return f"{place} {row['verdict']}{again}"
    text = f"{place} {_speed(row['speedup'])} fp32 eager"
    if "speedup_runtime" in row:
        text += f", {_speed(row['speedup_runtime'])} fp32 in the same runtime"
    if "speedup_dense" in row:
        text += f", {_speed(row['speedup_dense'])} the same file with its zeros multiplied"
    return f"{text} ({row['ms']:.3f} ms, A/A within {row['noise']:.1%})"


def _speed(ratio: float) -> str:
    return f"{ratio:.2f} x faster than" if ratio >= 1 else f"SLOWER: {1 / ratio:.2f} x the time of"
