"""How a run looks while it goes on: one live line on a terminal, one plain line per evaluation elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.flags import Out, color
from orchestrator.environment import no_color

if TYPE_CHECKING:
    from orchestrator.cli.live import LiveLine, Part
    from orchestrator.cluster.events import Event
    from orchestrator.plan.plan import Plan

_REDRAW_S = 0.15
_PLAIN_S = 10.0
_TOLD = {
    "failure": "red",
    "hang": "red",
    "retry": "yellow",
    "stopping": "yellow",
    "finishing": "cyan",
    "note": "yellow",
}


class Progress:
    """Listens to a run's events. `metric` is the monitored one, shown beside the loss."""

    def __init__(self, out: Out, plan: Plan, metric: str) -> None:
        self._out = out
        self._plan = plan
        self._metric = metric
        self._on_terminal: bool | None = None
        self._live: LiveLine | None = None
        self._latest: dict[str, float] = {}
        self._step = 0
        self._shown_at = 0.0
        self._began: tuple[float, int] | None = None
        self._waiting: deque[Event] = deque()
        self._busy = False

    def __call__(self, event: Event) -> None:
        """Show one event. A signal may bring one while another is being shown: it has its turn after that."""
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._show(self._waiting.popleft())
        finally:
            self._busy = False

    def _show(self, event: Event) -> None:
        if event.kind == "metrics":
            self._metrics(int(event.data["step"]), dict(event.data["values"]))
        elif event.kind in _TOLD:
            if event.kind == "finishing":
                self._leave_line()
            self.tell(event.kind, event.text, _TOLD[event.kind])
        elif event.kind == "tracking" and event.text:
            self.tell("mlflow", event.text)
        elif event.kind == "ranks":
            self._ranks(event)
        elif event.kind == "created":
            self.tell("run", f"{event.text}  {event.data.get('path', '')}")
        elif event.kind == "attempt":
            self._began = None
            if event.data.get("attempt", 1) > 1:
                resumed = "from the newest checkpoint" if event.data.get("resume") else "from the start"
                self.tell("attempt", f"{event.data['attempt']}, {resumed}")

    def _ranks(self, event: Event) -> None:
        """Show where the ranks run: a line for all, with -v one for each. One rank needs no map."""
        if len(event.data["ranks"]) > 1:
            self.tell("ranks", event.text)
        if self._out.verbose:
            for line in event.data["lines"]:
                self.tell("", line)

    def tell(self, title: str, text: str, colour: str = "") -> None:
        """Print a line above the live one."""
        if self._out.quiet:
            return
        self.clear()
        label = click.style(f"{title:<9}", fg=colour or None, bold=not colour)
        click.echo(f"{label} {text}", err=True, color=color())

    def clear(self) -> None:
        """Take the live line away and give the cursor back."""
        if self._live is not None:
            self._live.stop()

    def _leave_line(self) -> None:
        if self._live is not None and self._began is not None:
            self._draw()
            self._live.stop(keep=True)

    def _metrics(self, step: int, values: dict[str, Any]) -> None:
        self._latest.update(values)
        self._step = max(self._step, step) if step >= self._step - 1 else step
        if self._began is None:
            self._began = (time.monotonic(), step)
        if self._out.quiet:
            return
        judged = any(name.startswith("val/") for name in values)
        since = time.monotonic() - self._shown_at
        if not self._can_redraw():
            if judged or since > _PLAIN_S:
                self._shown_at = time.monotonic()
                click.echo(self.line(), err=True)
        elif judged or since > _REDRAW_S:
            self._shown_at = time.monotonic()
            self._draw()

    def _can_redraw(self) -> bool:
        if self._on_terminal is None:
            self._on_terminal = sys.stderr.isatty()
            if self._on_terminal:
                from orchestrator.cli.live import LiveLine

                self._live = LiveLine(sys.stderr, plain=no_color())
                self._on_terminal = self._live.is_able
        return self._on_terminal

    def _draw(self) -> None:
        if self._live is not None and self._can_redraw():
            total = self._plan.batch.total_steps
            self._live.draw(self._step / total if total else None, self.parts())

    def line(self) -> str:
        """Return the state in one line of plain text."""
        return "  ".join(f"{part.label} {part.value}".strip() for part in self.parts())

    def parts(self) -> list[Part]:
        """Return the state: epoch, step, loss, metric, speed, time left."""
        from orchestrator.cli.live import Part

        total, latest = self._plan.batch.total_steps, self._latest
        found = [
            Part("epoch", self._epoch(), 5),
            Part("step", f"{self._step:,}/{total:,}" if total else f"{self._step:,}", 1),
        ]
        if "train/loss" in latest:
            found.append(Part("loss", f"{latest['train/loss']:.4f}", 0, "bold"))
        other = self._other_metric()
        for name, rank in ((self._metric, 4 if other else 2), (other, 2)):
            if name in latest:
                found.append(Part(name, f"{latest[name]:.4f}", rank, "bold green"))
        if "perf/samples_per_s" in latest:
            found.append(Part("", f"{_short(latest['perf/samples_per_s'])} samples/s", 3, "cyan"))
        left_s = self._left_s()
        if left_s is not None:
            found.append(Part("ETA", _clock(left_s), 1, "yellow"))
        return found

    def _left_s(self) -> float | None:
        """Return the seconds left, evaluation and saving included as far as they came already."""
        total, step_s = self._plan.batch.total_steps, self._latest.get("perf/step_s")
        if not total or step_s is None or self._began is None:
            return None
        at, first = self._began
        if self._step > first:
            step_s = max(step_s, (time.monotonic() - at) / (self._step - first))
        return (total - self._step) * step_s

    def _epoch(self) -> str:
        batch = self._plan.batch
        if not batch.num_train_samples:
            return f"{self._latest.get('train/epoch', 0.0):.2f}"
        last = f"{batch.epoch_after(batch.total_steps):.1f}".removesuffix(".0")
        return f"{batch.epoch_after(self._step):.1f}/{last}"

    def _other_metric(self) -> str:
        """Return the metric that says more to people than a loss: the first of the evaluation that is none."""
        names = (name for name in self._latest if name.startswith("val/") and name not in ("val/loss", self._metric))
        return next(names, "")


def _short(number: float) -> str:
    for unit in ("", "k", "M"):
        if number < 1000 or unit == "M":
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
