"""Budgets of a sweep: which one is spent, and that a sweep which never ends is told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.load import load_spec
from orchestrator.sweep.budget import budget_spent
from orchestrator.sweep.check import find_sweep_problems
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import objectives_of
from orchestrator.sweep.summary import Summary, as_data, note_rows
from tests.sweep.jobs import tiny_sweep


def ledger_of(path: Path) -> Ledger:
    """A ledger with two trials that used 600 s of 3 workers and 1800 s of 1, and an infeasible one."""
    ledger = Ledger(path)
    for lr, workers, seconds in ((0.1, 3, 600.0), (0.2, 1, 1800.0), (0.3, 1, 0.0)):
        trial = ledger.propose({"optim.lr": lr}, origin="search", asked=1)
        if seconds:
            ledger.begin(trial, 0, workers=workers, job="")
            ledger.leave(trial, 0, seconds)
        ledger.end(trial, "finished" if seconds else "infeasible")
    return ledger


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"trials": 3}, ""),
        ({"trials": 2}, "all 2 trials"),
        ({"time_s": 61.0}, ""),
        ({"time_s": 60.0}, "the time is up (60 s)"),
        ({"worker_s": 3601.0}, ""),
        ({"worker_s": 3600.0}, "the budget of 3600 worker seconds is spent"),
        ({"cost": {"worker_hour": 2.5, "limit": 2.6}}, ""),
        ({"cost": {"worker_hour": 2.5, "limit": 2.5}}, "the budget of 2.5 (at 2.5 a worker hour) is spent"),
        ({"cost": {"worker_hour": 2.5}, "trials": 9}, ""),
    ],
)
def test_the_budget_that_is_spent_is_named(tmp_path: Path, budget: dict[str, Any], said: str) -> None:
    sweep = load_spec(tiny_sweep(tmp_path, {"trials": None, **budget})).sweep
    assert sweep is not None
    assert budget_spent(sweep, ledger_of(tmp_path / "ledger.jsonl"), 60.0) == said


def test_an_attempt_counts_with_the_workers_that_it_had(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    trial = ledger.propose({"optim.lr": 0.1}, origin="search", asked=1)
    for workers, seconds in ((1, 100.0), (4, 10.0)):  # resumed in another layout
        ledger.begin(trial, 0, workers=workers, job="")
        ledger.leave(trial, 0, seconds)
    ledger.close()
    job = load_spec(tiny_sweep(tmp_path, {}))
    again = Ledger(ledger.path)
    assert Summary(job, objectives_of(job), again.trials, [], 60.0).worker_s == 140.0


def test_trials_under_way_count_for_what_they_have_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_spec(tiny_sweep(tmp_path, {"trials": None, "worker_s": 50.0})).sweep
    assert sweep is not None
    ledger = Ledger(tmp_path / "ledger.jsonl")
    trial = ledger.propose({"optim.lr": 0.1}, origin="search", asked=1)
    ledger.begin(trial, 0, workers=2, job="")
    trial.began = 1000.0
    for now_s, said in ((1024.0, ""), (1025.0, "the budget of 50 worker seconds is spent")):
        monkeypatch.setattr("orchestrator.sweep.budget.time.monotonic", lambda now_s=now_s: now_s)
        assert budget_spent(sweep, ledger, 60.0) == said


def test_the_cost_is_told_where_a_price_is_given_and_only_there(tmp_path: Path) -> None:
    trials = ledger_of(tmp_path / "ledger.jsonl").trials
    for cost, shown in (({"worker_hour": 2.5}, 2.5), (None, None)):
        job = load_spec(tiny_sweep(tmp_path, {"cost": cost}))
        summary = Summary(job, objectives_of(job), trials, [], 60.0)
        assert as_data(summary)["cost"] == shown
        assert dict(note_rows(summary))["spent"] == "60 s, 3600 worker seconds" + (", cost 2.5" if shown else "")


def test_a_price_without_a_limit_ends_nothing(tmp_path: Path) -> None:
    space = {"optim.lr": {"min": 0.1, "max": 0.2}}
    endless = tiny_sweep(tmp_path, {"space": space, "trials": None, "cost": {"worker_hour": 1.0}})
    assert "never ends" in find_sweep_problems(endless)[0].message
    limited = tiny_sweep(tmp_path, {"space": space, "trials": None, "cost": {"worker_hour": 1.0, "limit": 3.0}})
    assert find_sweep_problems(limited) == []


def test_a_ledger_of_a_version_that_wrote_numbers_of_the_model_beside_the_values_is_read(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "ledger.jsonl")
    ledger.close()
    assert '"model"' not in ledger.path.read_text()
    ledger.path.write_text(ledger.path.read_text().replace('"total_steps":', '"model":{"params":3.0},"total_steps":'))
    again = Ledger(ledger.path)
    again.close()
    assert again.trials == ledger.trials
