"""The matrix: no registered model is left out, every cell runs or says why not, and what runs agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import plugins
from orchestrator.errors import OrchestratorError
from orchestrator.plan.stages import SCHEDULES
from orchestrator.verify.matrix import Cell, label_of, matrix_jobs, missing_models, run_spots, sample, spots
from orchestrator.verify.matrix_kept import KeptCells
from orchestrator.verify.matrix_page import page

ALL = spots(matrix_jobs(), [2, 4, 8])


def assert_agree(cells: list[Cell]) -> None:
    assert [cell for cell in cells if not cell.agrees] == []
    assert all(cell.difference is not None for cell in cells if not cell.unsupported)


def test_every_built_in_model_has_a_row() -> None:
    assert missing_models() == []
    assert {job.model.use for job in matrix_jobs().values()} <= set(plugins.names("models"))


def test_every_cell_is_planned_or_says_why_not() -> None:
    assert all((spot.candidate is None) == bool(spot.unsupported) for spot in ALL)
    assert {spot.schedule for spot in ALL} == {"", *SCHEDULES}
    assert {spot.layout.world_size for spot in ALL} == {2, 4, 8}
    assert len({(spot.model, spot.layout, spot.schedule, spot.attention) for spot in ALL}) == len(ALL)


def test_every_axis_is_supported_by_some_model_and_every_schedule_on_two_ranks() -> None:
    fitting = [spot for spot in ALL if spot.candidate is not None]
    for axis in ("pipeline", "replicate", "shard", "context", "tensor", "expert"):
        assert any(getattr(spot.layout, axis) > 1 for spot in fitting), axis
    for way in ("heads", "ring"):
        assert {spot.model for spot in fitting if spot.attention == way} >= {"transformer", "transformer, tied", "moe"}
    on_two = {spot.schedule for spot in fitting if spot.layout.pipeline == 2 and spot.model == "transformer"}
    assert on_two == set(SCHEDULES)


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    assert sample(ALL, 5, seed=1) == sample(ALL, 5, seed=1)
    assert sample(ALL, 5, seed=1) != sample(ALL, 5, seed=2)


def test_a_few_cells_of_two_ranks_agree() -> None:
    few = [spot for spot in ALL if spot.layout.world_size == 2 and spot.model in ("cnn", "rnn", "transformer, tied")]
    assert_agree(run_spots(sample(few, 6, seed=3), num_steps=2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_larger_sample_agrees() -> None:
    some = [spot for spot in ALL if spot.layout.world_size <= 4]
    most = [spot for spot in ALL if spot.layout.world_size == 8]
    assert_agree(run_spots([*sample(some, 12, seed=4), *sample(most, 2, seed=4)], num_steps=2))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_whole_matrix_agrees() -> None:
    assert_agree(run_spots(ALL, num_steps=2))


@pytest.mark.slow
def test_a_matrix_that_was_interrupted_goes_on_with_what_is_missing_or_failed(tmp_path: Path) -> None:
    among = [spot for spot in ALL if spot.layout.world_size == 2 and spot.model == "mlp" and spot.candidate is not None]
    first, second, third = (Cell("mlp", 2, label_of(spot), spot.schedule, 1e-16) for spot in among[:3])
    kept = KeptCells(tmp_path / "cells.jsonl", num_steps=3, date="2030-01-01")
    kept.add(first)
    kept.add(replace(second, difference=None, error="the machine ran out of memory"))
    kept.add(third)
    text = (tmp_path / "cells.jsonl").read_text()
    (tmp_path / "cells.jsonl").write_text(text[: text.rindex("1e-16")])  # killed in the middle of a line
    again = KeptCells(tmp_path / "cells.jsonl", num_steps=3, date="2030-01-02")
    assert again.missing(among) == among[1:]
    again.add(third)
    again.add(replace(second, difference=1.0))
    last = KeptCells(tmp_path / "cells.jsonl", num_steps=3, date="2030-01-03")
    assert last.begun == "2030-01-01"
    assert last.of(among[:3]) == [first, replace(second, difference=1.0), third]
    assert last.missing(among) == [among[1], *among[3:]]
    with pytest.raises(OrchestratorError, match="measured with"):
        KeptCells(tmp_path / "cells.jsonl", num_steps=2, date="2030-01-03")


def cell(model: str, layout: str, schedule: str = "", **rest: object) -> Cell:
    return Cell(model, 2, layout, schedule, **{"difference": None, **rest})  # type: ignore[arg-type]


def test_the_page_shows_the_worst_names_what_disagrees_and_gives_reasons() -> None:
    cells = [
        cell("a", "pipeline 2", "gpipe", difference=1e-15),
        cell("a", "pipeline 2", "1f1b", difference=3e-14),
        cell("a", "pipeline 2", "dualpipe_v", unsupported="too few layers"),
        cell("b", "tensor 2", difference=2e-3, name="layers.head.weight"),
        cell("c", "tensor 2", error="RuntimeError: no kernel"),
    ]
    text = page(cells, command="orchestrator verify --matrix", date="2030-01-01", machine="x", num_steps=2)
    assert "5 cells: 3 ran, 2 disagree, 1 are not supported" in text
    assert "| pipeline 2 | 3e-14 (2 of 3) |" in text
    assert "| tensor 2 |  | **2e-03** | **failed** |" in text
    assert "- b, tensor 2: 2.0e-03 in layers.head.weight" in text
    assert "- c, tensor 2: RuntimeError: no kernel" in text
    assert "1. too few layers" in text
