"""Figures show what the spool holds, and are left out where there is nothing to show."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.image import imread

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking.expert_figure import experts_figure, read_loads
from orchestrator.tracking.figures import (
    confusion_figure,
    curve_figure,
    draw_figures,
    draw_run,
    read_records,
    read_series,
)


def write(run: RunDir, writer: str, steps: range, offset: float = 0.0) -> None:
    with SpoolWriter(run.spool / f"{writer}.jsonl") as spool:
        for step in steps:
            spool.metrics(step, {"train/loss": 1 / step + offset})
            if step % 10 == 0:
                spool.metrics(step, {"val/loss": 1.1 / step, "val/accuracy": 1 - 1 / step})


def test_series_come_in_order_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, "rank0-a1", range(1, 31))
    write(run, "rank0-a2", range(21, 51), offset=9.0)
    points = read_series(run)["train/loss"]
    assert [step for step, _ in points] == list(range(1, 51))
    assert points[24] == (25, 1 / 25)
    assert points[49] == (50, 1 / 50 + 9.0)


def test_loss_accuracy_and_confusion_matrix_are_written_as_pictures(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, "rank0-a1", range(1, 101))
    counts = [[5, 1, 0], [0, 7, 0], [1, 0, 9]]
    written = draw_figures(run, counts, labels=["a", "b", "c"], best_step=90)
    assert [path.name for path in written] == ["loss.png", "accuracy.png", "confusion_matrix.png"]
    for path in written:
        assert path.parent == run.artifacts / "figures"
        pixels = imread(path)
        assert pixels.shape[0] > 300
        assert pixels.std() > 0.05
    assert "matplotlib.pyplot" not in sys.modules


def test_a_run_is_drawn_from_its_folder_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, "rank0-a1", range(1, 101))
    run.artifacts.mkdir()
    (run.artifacts / "confusion.json").write_text('{"classes": ["a", "b"], "counts": [[5, 1], [0, 7]]}')
    run.result.write_text('{"best_step": 90}')
    folder = draw_run(run)
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {"loss.png", "accuracy.png", "confusion_matrix.png"}


def test_a_run_without_points_has_no_figures(tmp_path: Path) -> None:
    assert draw_run(RunDir(tmp_path)) is None


def test_the_confusion_matrix_says_how_many_are_right_and_writes_the_counts() -> None:
    (axes,) = confusion_figure([[5, 1], [0, 7]]).axes
    assert axes.get_title(loc="left") == "12 of 13 right"
    assert sorted(text.get_text() for text in axes.texts) == ["0", "1", "5", "7"]
    (large,) = confusion_figure([[1] * 100] * 100).axes
    assert len(large.texts) == 0


def test_a_curve_has_a_line_for_each_split_and_marks_the_best_step() -> None:
    (axes,) = curve_figure("loss", {"train": [(1, 2.0), (2, 1.0)], "val": [(2, 1.5)]}, best_step=2).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["train/loss", "val/loss", "best checkpoint (step 2)"]


def write_experts(run: RunDir, layers: int, steps: range) -> None:
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        for step in steps:
            loads = {f"block{layer}": [2 - 1 / step, 1 / step, 1.0, 1.0] for layer in range(1, layers + 1)}
            spool.record("experts", step=step, loads=loads)
            spool.metrics(step, {"train/loss": 1.0, "moe/block1/drop_rate": 1 / step, "moe/block1/router_entropy": 1.2})


def test_the_load_of_every_expert_is_drawn_with_drops_and_entropy_over_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_experts(run, 2, range(1, 11))
    written = draw_figures(run)
    assert [path.name for path in written] == ["loss.png", "experts.png"]
    assert imread(written[1]).std() > 0.05
    loads = read_loads(read_records(run, "experts"))
    assert list(loads["block2"]) == list(range(1, 11))
    first, second, bar = experts_figure(loads, read_series(run)).axes
    assert first.get_title(loc="left") == "block1  dropped 10.0%  entropy 1.20"
    assert second.get_title(loc="left") == "block2"
    cells = first.collections[0].get_array().reshape(4, 10)
    assert cells[0, -1] == 1.9
    assert cells[1, -1] == 0.1
    assert "fair share" in bar.get_ylabel()


def test_of_many_layers_an_even_choice_is_drawn_and_said(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_experts(run, 40, range(1, 3))
    figure = experts_figure(read_loads(read_records(run, "experts")), {})
    assert len(figure.axes) == 13
    assert "12 of 40 layers" in figure.get_suptitle()
    assert figure.axes[11].get_title(loc="left") == "block40"
