"""`Source`: when it goes on past points that cannot be trained, and when it says that there are no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.available import Available
from orchestrator.spec.load import load_spec
from orchestrator.sweep import source as source_module
from orchestrator.sweep.check import build_space
from orchestrator.sweep.feasible import Limits
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.source import Source


def make_source(path: Path, sweep: dict[str, Any]) -> Source:
    data = {"model": {"use": "cnn"}, "data": {"use": "digits"}, "train": {"epochs": 1}}
    job = load_spec({**data, "sweep": sweep})
    return Source(data, job, build_space(job), Ledger(path / "ledger.jsonl"), Limits(Available.unknown()))


def test_a_grid_goes_on_past_many_infeasible_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MAX_IN_A_ROW", 5)
    space = {"train.seed": list(range(12))}
    found = make_source(tmp_path, {"space": space, "search": {"use": "grid"}, "constraints": ["train.seed >= 10"]})
    seeds = []
    while (each := found.next()) is not None:
        seeds.append(each[0].point["train.seed"])
    assert seeds == [10, 11]
    assert found.ended == "every point of the space was tried"


def test_a_source_that_has_ended_asks_again_only_when_something_new_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MAX_IN_A_ROW", 5)
    found = make_source(tmp_path, {"space": {"train.seed": [1]}, "trials": 3})
    asked: list[int] = []
    ask = found.searcher.ask
    monkeypatch.setattr(found.searcher, "ask", lambda: asked.append(1) or ask())
    first = found.next()
    assert first is not None
    assert found.next() is None
    assert len(asked) == 1 + 5
    assert (found.next(), len(asked)) == (None, 6)
    assert found.ended.startswith("5 points in a row")
    found.tell(first[0])
    assert (found.next(), len(asked)) == (None, 11)


MLP = {"use": "mlp", "inputs": 64, "outputs": 10}


def test_a_constraint_over_two_models_tells_only_what_the_chosen_one_has(tmp_path: Path) -> None:
    constraint = "model.use == 'mlp' and model.hidden[0] <= 8 or model.use == 'cnn' and model.channels[0] <= 8"
    space = {"model": [{**MLP, "hidden": [16]}, {"use": "cnn", "channels": [8]}]}
    found = make_source(tmp_path, {"space": space, "search": {"use": "grid"}, "constraints": [constraint]})
    given = found.next()
    assert found._ledger.trials[0].reason == f"{constraint} does not hold (model.use = 'mlp', model.hidden.0 = 16)"
    assert given is not None
    assert given[0].point["model"]["use"] == "cnn"


def test_a_space_is_not_counted_when_the_job_says_how_many_trials_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_source(tmp_path, {"space": {"train.seed": [1, 2, 3]}, "search": {"use": "grid"}}).size == 3
    found = make_source(tmp_path, {"space": {"train.seed": [1, 2, 3]}, "trials": 2})
    monkeypatch.setattr("orchestrator.sweep.space.Space.size", lambda self: pytest.fail("counted"))
    assert found.size == 2
