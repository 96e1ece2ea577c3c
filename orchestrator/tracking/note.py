"""The run's description in MLflow (markdown): the verdict first, a small table, the command to reproduce it last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.log import redact


def build_note(
    verdict: str,
    rows: Sequence[tuple[str, str]] = (),
    *,
    command: str,
    text: str = "",
) -> str:
    """Return the description. MLflow's page folds it after about four lines, so the verdict stands alone on the first.

    `rows` are (what, value) pairs of the table, `text` is the user's own (`track.description`), `command` reproduces
    the run.
    """
    parts = [redact(verdict.strip())]
    if text.strip():
        parts.append(redact(text.strip()))
    if rows:
        table = [f"| {_cell(what)} | {_cell(value)} |" for what, value in rows]
        parts.append("\n".join(["| | |", "|---|---|", *table]))
    parts.append(f"Run it again:\n\n```\n{redact(command.strip())}\n```")
    return "\n\n".join(parts)


def build_verdict(
    status: str,
    metrics: Mapping[str, float],
    *,
    monitor: str = "",
    best: Mapping[str, float] | None = None,
    best_epoch: float | None = None,
    layout: str = "",
) -> str:
    """Return the verdict line.

    For example `finished: val/accuracy 0.989 at epoch 12 (best), test/accuracy 0.986, 2 ranks = replicate 2`.
    `metrics` are the last values, `best` those at the best checkpoint by `monitor`; test metrics are named when there.
    """
    parts: list[str] = []
    if best and monitor in best:
        at = f" at epoch {best_epoch:.4g} (best)" if best_epoch is not None else " (best)"
        parts.append(f"{monitor} {_number(best[monitor])}{at}")
    elif monitor in metrics:
        parts.append(f"{monitor} {_number(metrics[monitor])}")
    tests = sorted((key for key in metrics if key.startswith("test/")), key=lambda key: (key == "test/loss", key))
    parts += [f"{key} {_number(metrics[key])}" for key in tests[:1]]
    if layout:
        parts.append(layout)
    return f"{status}: {', '.join(parts)}" if parts else status


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def _cell(text: str) -> str:
    return redact(str(text)).replace("|", "\\|").replace("\n", " ")
