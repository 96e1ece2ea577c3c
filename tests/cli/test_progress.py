"""The progress of a run: one line redrawn in place on a terminal, plain lines elsewhere, nothing left behind."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.flags import Out
from orchestrator.cli.live import Part, build_line
from orchestrator.cli.progress import Progress
from orchestrator.cluster.events import Event
from tests.cluster.jobs import plan_of, tiny

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Standard error as a terminal of 140 columns; `read` returns what was written to it since the last call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = pty.openpty()
        self._monkeypatch = monkeypatch
        self.stream = os.fdopen(slave, "w", encoding="utf-8")

    def progress(self) -> Progress:
        # Not in the fixture: pytest's own capture takes the place between set-up and call.
        self._monkeypatch.setattr(sys, "stderr", self.stream)
        return progress()

    def read(self) -> str:
        self.stream.flush()
        text = b""
        while select.select([self._master], [], [], 0.05)[0]:
            text += os.read(self._master, 65536)
        return text.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    opened = Terminal(monkeypatch)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    yield opened
    opened.close()


def metrics(step: int, **more: float) -> Event:
    values = {"train/loss": 0.25, "perf/step_s": 0.5, "perf/samples_per_s": 12_345.0}
    return Event("metrics", "", {"step": step, "values": {**values, **{f"val/{key}": more[key] for key in more}}})


def progress(*, quiet: bool = False) -> Progress:
    return Progress(Out(quiet=quiet), plan_of(tiny(Path("never"))), "val/loss")


def test_a_terminal_sees_one_line_with_bar_epoch_step_loss_metric_speed_and_time_left(terminal: Terminal) -> None:
    shown = terminal.progress()
    shown(metrics(15, loss=0.5, accuracy=0.875))
    text = terminal.read()
    plain = ESCAPES.sub("", text)
    for piece in ("━", "50%", "epoch 1.3/2.7", "step 15/30", "loss 0.2500", "val/loss 0.5000", "val/accuracy 0.8750"):
        assert piece in plain, plain
    assert "12.3k samples/s" in plain
    assert "ETA 0:07" in plain
    assert "\n" not in text
    assert "\x1b[?25l" in text


def test_the_line_is_redrawn_in_place_and_not_more_often_than_people_can_read(terminal: Terminal) -> None:
    shown = terminal.progress()
    shown(metrics(1, loss=0.5))
    terminal.read()
    for step in range(2, 12):
        shown(metrics(step))
    assert terminal.read().count("step") <= 1
    shown(metrics(12, loss=0.4))
    text = terminal.read()
    assert text.startswith("\r\x1b[2K")
    assert "\n" not in text


def test_taking_it_away_leaves_an_empty_line_and_a_visible_cursor(terminal: Terminal) -> None:
    shown = terminal.progress()
    shown(metrics(15, loss=0.5))
    shown.clear()
    assert re.search(r"\x1b\[\?25h.*\x1b\[2K", terminal.read(), re.DOTALL)
    shown.clear()
    assert terminal.read() == ""


def test_words_stand_above_the_line_and_the_last_state_stays_when_training_is_over(terminal: Terminal) -> None:
    shown = terminal.progress()
    shown(metrics(15, loss=0.5))
    shown(Event("retry", "trying again in 1 s"))
    shown(metrics(30, loss=0.5))
    terminal.read()
    shown(Event("finishing", "exporting"))
    lines = [line for line in ESCAPES.sub("", terminal.read()).splitlines() if line.strip()]
    assert "100%" in lines[-2]
    assert lines[-1].split() == ["finishing", "exporting"]


def test_an_event_from_a_signal_in_the_middle_of_drawing_waits_for_its_turn(terminal: Terminal) -> None:
    shown = terminal.progress()
    draw = shown._draw

    def interrupted() -> None:
        shown(Event("stopping", "Ctrl-C"))
        draw()

    shown._draw = interrupted  # type: ignore[method-assign]
    shown(metrics(15, loss=0.5))
    plain = ESCAPES.sub("", terminal.read())
    assert plain.index("step 15/30") < plain.index("Ctrl-C")


def test_no_color_and_dumb_terminals_are_respected(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.progress()(metrics(15, loss=0.5))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.read())
    monkeypatch.setenv("TERM", "dumb")
    shown = terminal.progress()
    shown(metrics(15, loss=0.5))
    shown(metrics(20, loss=0.5))
    text = terminal.read()
    assert "\x1b" not in text
    assert "step 20/30" in text


def test_without_a_terminal_there_is_a_plain_line_per_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress()
    shown(metrics(10, loss=0.5))
    for step in range(11, 20):
        shown(metrics(step))
    shown(metrics(20, loss=0.4))
    text = capsys.readouterr().err
    assert [line.split("  ")[1] for line in text.splitlines()] == ["step 10/30", "step 20/30"]
    assert "\x1b" not in text


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress(quiet=True)
    shown(metrics(30, loss=0.5))
    shown(Event("retry", "trying again"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [10, 24, 40, 60, 80, 100, 200])
def test_the_line_is_never_wider_than_the_terminal_and_keeps_what_matters_most(width: int) -> None:
    parts = [Part("epoch", "1.2/2", 5), Part("step", "15/30", 1), Part("loss", "0.2500", 0), Part("", "9 samples/s", 3)]
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(build_line(0.5, parts, width), end="")
    (line,) = captured.get().rstrip("\n").split("\n")
    assert len(line) <= width
    assert ("loss 0.2500" in line) == (width >= 24)
    assert ("samples/s" in line) == (width >= 60)


def test_rich_is_not_imported_before_there_is_something_to_draw() -> None:
    code = (
        "import sys; from orchestrator.cli import app, progress, run; from orchestrator.cluster import events;"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'rich'], 'rich'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
