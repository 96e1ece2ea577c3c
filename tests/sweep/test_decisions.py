"""Searchers, schedulers, objectives and the ledger: pure decisions, no process is started."""

from __future__ import annotations

import math
import os
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from orchestrator import plugins
from orchestrator.errors import CheckpointError
from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import build_space
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import Objective, aggregate, pareto_front, scores_of
from orchestrator.sweep.point import point_hash
from orchestrator.sweep.schedulers import Asha, Hyperband, Median, Rungs
from orchestrator.sweep.search import Outcome, Searcher, SearchTask

PARAMS = {
    "model.channels": [[4], [8], [8, 16]],
    "model.hidden": [0, 16],
    "model.dropout": {"min": 0.0, "max": 0.4, "step": 0.1, "when": "model.hidden > 0"},
    "optim.lr": {"min": 1e-4, "max": 0.1, "log": True},
    "train.batch_size": {"min": 16, "max": 64, "step": 16},
}


def task(objectives: int = 1, asked: int = 0, params: dict[str, Any] | None = None) -> SearchTask:
    job = {"model": {"use": "cnn"}, "data": {"use": "digits"}, "train": {"epochs": 1}}
    space = build_space(load_spec({**job, "sweep": {"space": params or PARAMS, "trials": 1}}))
    wanted = (Objective("val/accuracy", "max"), Objective("model/params", "min"))[:objectives]
    return SearchTask(space, wanted, seed=3, asked=asked)


def build(name: str, given: SearchTask, **options: Any) -> Searcher:
    searcher: Searcher = plugins.build("searchers", name, options, given)
    return searcher


def value_of(point: Any) -> dict[str, float]:
    """A made landscape: a learning rate near 0.01 is best, and more channels are better and larger."""
    width = sum(point["model.channels"])
    return {"val/accuracy": width / 100 - abs(math.log10(point["optim.lr"]) + 2), "model/params": 100.0 * width}


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", ["random", "sobol", "tpe", "gp", "nsga2"])
def test_a_searcher_gives_points_of_the_space_and_takes_every_outcome(name: str, objectives: int) -> None:
    given = task(objectives)
    searcher = build(name, given, **({"startup": 4} if name in ("tpe", "gp") else {}))
    seen = set()
    for number in range(14):
        point = searcher.ask()
        assert point is not None
        assert given.space.holds(point), point
        seen.add(point_hash(point))
        states = {3: "infeasible", 5: "oom", 7: "diverged", 9: "failed"}
        state = states.get(number, "stopped" if number == 11 else "finished")
        searcher.tell(point, Outcome(state, value_of(point) if state in ("finished", "stopped") else {}, "why"))
    assert len(seen) > 8


@pytest.mark.parametrize("name", ["random", "sobol"])
def test_a_resumed_search_goes_on_where_it_was(name: str) -> None:
    whole, first = build(name, task()), build(name, task())
    points = [whole.ask() for _ in range(6)]
    assert [first.ask() for _ in range(4)] == points[:4]
    assert [build(name, task(asked=4)).ask()] == points[4:5]


def test_tpe_finds_a_better_learning_rate_than_it_began_with_also_when_seeded_by_old_results() -> None:
    first = build("tpe", task(), startup=8)
    told = []
    for _ in range(25):
        point = first.ask()
        assert point is not None
        told.append((point, Outcome("finished", value_of(point))))
        first.tell(*told[-1])
    scores = [outcome.values["val/accuracy"] for _, outcome in told]
    assert max(scores[8:]) > max(scores[:8])
    narrower = PARAMS | {"optim.lr": {"min": 3e-3, "max": 3e-2, "log": True}, "model.channels": [[8, 16], [32]]}
    second = build("tpe", task(asked=25, params=narrower), startup=1)
    for point, outcome in told:
        second.tell(point, outcome)  # those outside the new space are left out
    point = second.ask()
    assert point is not None
    assert 3e-3 <= point["optim.lr"] <= 3e-2


def test_a_point_that_optuna_asks_again_leaves_no_trial_open() -> None:
    """Two points only: most of twelve asks are of one that is under way, or has been told."""
    searcher: Any = build("tpe", task(params={"train.batch_size": [16, 32]}))
    for number in range(12):
        point = searcher.ask()
        if number % 2:
            searcher.tell(point, Outcome("finished", {"val/accuracy": 0.5}, ""))
    open_trials = [trial for trial in searcher._study.trials if not trial.state.is_finished()]
    assert len(open_trials) == len(searcher._open) <= 2


def test_the_grid_ends_and_may_be_shuffled() -> None:
    params = {"optim.lr": [0.1, 0.2, 0.3], "model.hidden": [0, 8]}
    plain, mixed = build("grid", task(params=params)), build("grid", task(params=params), shuffle=True)
    one, other = [[searcher.ask() for _ in range(7)] for searcher in (plain, mixed)]
    assert one[6] is None
    assert other[6] is None
    assert one != other
    assert {point_hash(point) for point in one[:6] if point} == {point_hash(point) for point in other[:6] if point}


def test_halving_lets_the_best_share_go_on_and_nobody_waits() -> None:
    rungs = Rungs(grace=1, reduction=3)
    assert not rungs.should_stop(1, 0.5)  # the first to come has nobody to lose to
    assert rungs.should_stop(1, 0.4)
    assert not rungs.should_stop(1, 0.6)
    assert [rungs.is_rung(n) for n in range(1, 11)] == [
        True,
        False,
        True,
        False,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert not rungs.should_stop(2, -1.0)
    assert rungs.should_stop(3, math.nan)


def test_hyperband_deals_trials_to_brackets_of_growing_grace() -> None:
    found = Hyperband.build(Hyperband.Config(grace=1, reduction=3, brackets=2))
    assert not found.should_stop(0, 1, 0.9)
    assert not found.should_stop(1, 1, 0.1)  # the patient bracket looks at evaluation 3 first
    assert found.should_stop(2, 1, 0.1)


def test_median_stopping_waits_for_others_and_for_its_grace() -> None:
    median = Median(grace=2, min_trials=2)
    for trial, scores in enumerate([(0.5, 0.6), (0.7, 0.8)]):
        assert [median.should_stop(trial, n + 1, score) for n, score in enumerate(scores)] == [False, False]
    assert not median.should_stop(2, 1, 0.1)
    assert median.should_stop(2, 2, 0.2)
    assert isinstance(Asha.build(Asha.Config()), Asha)


def test_the_front_is_what_nothing_dominates_and_missing_values_lose() -> None:
    objectives = (Objective("acc", "max"), Objective("size", "min"))
    values = {0: {"acc": 0.9, "size": 10}, 1: {"acc": 0.8, "size": 5}, 2: {"acc": 0.7, "size": 9}, 3: {"size": 1}}
    values |= {4: {"acc": 0.95, "size": math.nan}}
    front = pareto_front({key: scores_of(each, objectives) for key, each in values.items()})
    assert front == [4, 0, 1, 3]


def test_repeats_count_as_their_mean_median_or_worst() -> None:
    objectives = (Objective("acc", "max"), Objective("loss", "min"))
    runs = [
        {"acc": 0.5, "loss": 1.0, "other": 1.0},
        {"acc": 0.9, "loss": 2.0, "other": 2.0},
        {"acc": 1.0, "loss": 6.0, "other": 3.0},
    ]
    assert aggregate(runs, "mean", objectives) == {"acc": pytest.approx(0.8), "loss": 3.0, "other": 2.0}
    assert aggregate(runs, "median", objectives)["acc"] == 0.9
    assert aggregate(runs, "worst", objectives) == {"acc": 0.5, "loss": 6.0, "other": 2.0}


def test_the_ledger_gives_back_what_was_written_also_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    first = ledger.propose({"optim.lr": 0.1}, origin="start", asked=0)
    ledger.begin(first, 0, workers=2, job="abc")
    ledger.evaluate(first, 1, 10, {"val/loss": 0.5}, stop=False)
    ledger.leave(first, 0, 1.5)
    first.step = 20
    ledger.end(first, "finished", values={"val/loss": 0.25})
    ledger.begin(ledger.propose({"optim.lr": 0.2}, origin="search", asked=4), 0, workers=1, job="def")
    ledger.spend(2.5)
    ledger.close()
    with path.open("a") as file:
        file.write('{"event":"ended","trial":1,"sta')
    again = Ledger(path)
    assert again.trials[0].values == {"val/loss": 0.25}
    assert (again.trials[0].workers, again.trials[0].step, again.trials[0].is_over) == (2, 20, True)
    assert (again.trials[0].seconds, again.trials[0].attempts, again.trials[0].digests) == (1.5, {0: 1}, {0: "abc"})
    assert again.history == [(0, 1, {"val/loss": 0.5}), (0, 0, {})]
    assert (again.trials[1].state, again.asked, again.spent_s) == ("running", 4, 2.5)
    assert again.by_digest[point_hash({"optim.lr": 0.2})].number == 1
    again.close()


def test_a_ledger_whose_point_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.propose({"optim.lr": 0.1}, origin="search", asked=1)
    ledger.close()
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(CheckpointError, match="line 1"):
        Ledger(path)


@pytest.mark.parametrize("at", [0, 9])
def test_a_ledger_that_a_full_disk_does_not_take_says_so_and_stays_whole(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.propose({"optim.lr": 0.1}, origin="search", asked=1)
    whole, write = path.read_bytes(), os.write

    def full(fd: int, line: bytes) -> int:
        if at:
            return write(fd, line[:at])
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match=r"ledger.jsonl could not be written: No space left on device"):
        ledger.spend(1.0)
    monkeypatch.undo()
    ledger.close()
    assert path.read_bytes() == whole
