"""What a sweep shows while it goes on: a table that is redrawn on a terminal, plain lines anywhere else. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.flags import Out, color
from orchestrator.environment import no_color

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from orchestrator.cluster.events import Event
    from orchestrator.sweep.objectives import Objective
    from orchestrator.sweep.trial import Trial

_REDRAW_S = 0.25
_MOST_ROWS = 18
_STYLES = {"finished": "green", "stopped": "yellow", "running": "cyan", "infeasible": "dim", "failed": "red"}
_STYLES |= {"oom": "red", "diverged": "red", "interrupted": "yellow"}
_WORDS = {"stopped": "stopped early", "oom": "out of memory"}


class SweepProgress:
    """Takes the sweep's events. Call `close` at the end."""

    def __init__(self, out: Out, objectives: Sequence[Objective], total: int | None) -> None:
        self._out, self._objectives, self._total = out, objectives, total
        self._trials: dict[int, Trial] = {}
        self._began = time.monotonic()
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._able: bool | None = None

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.kind == "trial":
            self._trial(event)
        elif event.kind == "created":
            self.tell("run", f"{event.text}  {event.data.get('path', '')}")
        elif event.kind == "tracking" and event.text:
            self.tell("mlflow", event.text)
        elif event.kind == "schedule" and event.text:
            self.tell("schedule", event.text)
        elif event.kind in ("stopping", "finishing", "note", "supernet"):
            if event.kind == "finishing":
                self._draw(force=True)
                self._leave()
            self.tell(event.kind, event.text, "yellow" if event.kind == "stopping" else "")

    def tell(self, title: str, text: str, colour: str = "") -> None:
        """Print a line above the table."""
        if self._out.quiet:
            return
        line = f"{click.style(f'{title:<9}', fg=colour or None, bold=not colour)} {text}"
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(line))
        else:
            click.echo(line, err=True, color=color())

    def close(self) -> None:
        """Leave the table as it is, with the cursor below it."""
        self._leave()

    def _trial(self, event: Event) -> None:
        trial = event.data.get("trial")
        if trial is None:
            self.tell("trial", event.text)
            return
        self._trials[trial.number] = trial
        what = event.data["what"]
        if self._out.quiet:
            return
        if self._can_redraw():
            self._draw(force=what == "ended")
        elif what in ("ended", "infeasible", "interrupted") or (what == "begun" and self._out.verbose):
            click.echo(self._line(trial), err=True, color=color())

    def _line(self, trial: Trial) -> str:
        from orchestrator.sweep.point import point_name

        state = _WORDS.get(trial.state, trial.state)
        mark = "*" if trial.number in self._front() and trial.is_over else " "
        parts = [f"trial     {trial.name}{mark} {state:<13} {point_name(trial.point)}"]
        if trial.values:
            parts.append("  ".join(f"{name} {value}" for name, value in self._values(trial)))
        if trial.seconds:
            parts.append(f"{trial.seconds:.1f} s")
        if trial.reason and trial.state != "finished":
            parts.append(trial.reason)
        return "  ".join([*parts, self._count()])

    def _count(self) -> str:
        over = sum(each.is_over and each.state != "infeasible" for each in self._trials.values())
        return f"[{over}/{self._total}]" if self._total else f"[{over}]"

    def _values(self, trial: Trial) -> list[tuple[str, str]]:
        from orchestrator.sweep.summary import number

        latest = trial.values or (trial.curve[-1][1] if trial.curve else {})
        return [(each.name, number(latest.get(each.name))) for each in self._objectives]

    def _front(self) -> list[int]:
        from orchestrator.sweep.objectives import pareto_front, scores_of

        done = [trial for trial in self._trials.values() if trial.state in ("finished", "stopped")]
        return pareto_front({trial.number: scores_of(trial.values, self._objectives) for trial in done})

    # ---- the table

    def _can_redraw(self) -> bool:
        if self._able is None:
            from rich.console import Console

            console = Console(file=sys.stderr, no_color=no_color() or None)
            self._able = sys.stderr.isatty() and not console.is_dumb_terminal
        return self._able

    def _draw(self, *, force: bool = False) -> None:
        if not self._can_redraw() or not self._trials or (not force and time.monotonic() - self._drawn_at < _REDRAW_S):
            return
        from rich.console import Console
        from rich.live import Live

        self._drawn_at = time.monotonic()
        if self._live is None:
            console = Console(file=sys.stderr, no_color=no_color() or None, highlight=False)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._live.update(self.table(), refresh=True)

    def _leave(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def table(self) -> Table:
        """Return the table: the front and what is under way always, then the newest others."""
        from rich.table import Table
        from rich.text import Text

        from orchestrator.sweep.point import short_keys, short_value

        front = self._front()
        shown = self._chosen(front)
        paths = list(dict.fromkeys(path for trial in shown for path in trial.point))
        shorts = short_keys(paths)
        table = Table(box=None, pad_edge=False, caption=self._caption(), caption_justify="left")
        names = [*(shorts[path] for path in paths), *(each.name for each in self._objectives), "step", "time"]
        for name in ["trial", "state", *names]:
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify="left")
        for trial in shown:
            cells = [short_value(trial.point[path]) if path in trial.point else "" for path in paths]
            values = [value for _, value in self._values(trial)]
            seconds = trial.seconds + (time.monotonic() - trial.began if trial.began else 0.0)
            step = f"{trial.step}/{trial.total_steps}" if trial.total_steps else ""
            state = Text(_WORDS.get(trial.state, trial.state), style=_STYLES.get(trial.state, ""))
            label = Text(f"{trial.name} *" if trial.number in front else trial.name)
            style = "bold" if trial.number in front else "dim" if trial.state == "infeasible" else ""
            table.add_row(label, state, *cells, *values, step, f"{seconds:.0f} s", style=style)
        return table

    def _chosen(self, front: Sequence[int]) -> list[Trial]:
        running = [trial for trial in self._trials.values() if trial.state == "running"]
        kept = {trial.number: trial for trial in [*(self._trials[key] for key in front[:_MOST_ROWS]), *running]}
        for number in sorted(self._trials, reverse=True):
            if len(kept) >= _MOST_ROWS:
                break
            kept.setdefault(number, self._trials[number])
        return [kept[number] for number in sorted(kept)]

    def _caption(self) -> str:
        counts: dict[str, Any] = {}
        for trial in self._trials.values():
            counts[trial.state] = counts.get(trial.state, 0) + 1
        from orchestrator.sweep.summary import count_words

        elapsed = time.monotonic() - self._began
        over = sum(each.is_over and each.state != "infeasible" for each in self._trials.values())
        left = (
            f", about {elapsed / over * (self._total - over):.0f} s left"
            if over and self._total and self._total > over
            else ""
        )
        return f"{count_words(counts)}  {self._count()}  {elapsed:.0f} s{left}  (* front)"
