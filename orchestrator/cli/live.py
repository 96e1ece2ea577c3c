"""The live line of a run on a terminal, drawn with rich: bar, epoch, step, loss, metric, speed, time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

_BAR = (8, 36)
_ECHO = 3  # room for the ^C that a terminal writes where the cursor stands: a wrapped line could not be taken away


@dataclass(frozen=True)
class Part:
    """A piece of the line: a quiet label, a value that stands out. Where room is short, high `rank`s go first."""

    label: str
    value: str
    rank: int = 0
    style: str = "default"

    def __len__(self) -> int:
        return len(self.label) + len(self.value) + (1 if self.label and self.value else 0)


class LiveLine:
    """One line that is redrawn in place: written only when it is told to, whole, and never wider than the terminal."""

    def __init__(self, file: IO[str], *, plain: bool) -> None:
        from rich.console import Console

        self._console: Console = Console(file=file, no_color=plain or None, highlight=False)
        self._live: Live | None = None

    @property
    def is_able(self) -> bool:
        """Whether the terminal can redraw a line."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def draw(self, share: float | None, parts: Sequence[Part]) -> None:
        """Show the bar (`share` of the steps is done; None: no bar) and the parts."""
        from rich.live import Live

        line = build_line(share, parts, self._console.width - _ECHO)
        if self._live is None:
            # No thread of rich's: the caller redraws when there is news, and the cores are busy with training.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start()
        self._live.update(line, refresh=True)

    def stop(self, *, keep: bool = False) -> None:
        """Take the line away, or leave it as it is with the cursor below it. The cursor is visible again."""
        if self._live is not None:
            live, self._live = self._live, None
            live.transient = not keep
            live.stop()


def build_line(share: float | None, parts: Sequence[Part], width: int) -> Table:
    """Return the line for a terminal of so many columns: parts are left out until it fits, the bar takes the rest."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    kept = list(parts)
    reserved = 0 if share is None else _BAR[0] + len(" 100%  ")
    while len(kept) > 1 and reserved + sum(map(len, kept)) + 2 * len(kept) > width:
        kept.remove(max(reversed(kept), key=lambda part: part.rank))
    text = Text("  ", no_wrap=True, overflow="crop").join(
        Text.assemble((part.label, "dim"), " " if part.label and part.value else "", (part.value, part.style))
        for part in kept
    )
    line = Table.grid(padding=(0, 1))
    if share is None:
        line.add_row(text)
        return line
    percent = Text(f"{int(100 * share):3d}% ", "bold")
    room = width - text.cell_len - len(percent) - 3
    if room < 3:
        line.add_row(percent, text)
        return line
    bar = ProgressBar(
        total=1.0,
        completed=min(1.0, share),
        width=min(_BAR[1], room),
        complete_style="cyan",
        finished_style="green",
    )
    line.add_row(bar, percent, text)
    return line
