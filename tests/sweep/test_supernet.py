"""The searcher `supernet`: which nets it ranks, in which order it asks, where its trials get their weights."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import JobFileError
from orchestrator.plan.available import Available
from orchestrator.runs.paths import RunDir
from orchestrator.spec.load import load_spec
from orchestrator.supernet.page import (
    WEIGHTS_FILE,
    Nets,
    Ranking,
    ranking_path,
    read_ranking,
    supernet_seconds,
    write_ranking,
)
from orchestrator.sweep import supernet_run
from orchestrator.sweep.budget import budget_spent
from orchestrator.sweep.check import build_space, find_sweep_problems
from orchestrator.sweep.feasible import Feasible, Limits
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import Objective, pareto_front
from orchestrator.sweep.order import best_first, evenly, spread
from orchestrator.sweep.resume import require_same_trials, trial_digest
from orchestrator.sweep.source import Source
from orchestrator.sweep.supernet import ALONE, control_places
from orchestrator.sweep.workshop import Workshop

CHANNELS = [[4], [8], [4, 8], [8, 16]]


def sweep_data(search: dict[str, Any] | None = None, **sweep: Any) -> dict[str, Any]:
    return {
        "name": "nas",
        "model": {"use": "cnn"},
        "data": {"use": "digits"},
        "train": {"epochs": 4},
        "sweep": {
            "space": {"model.channels": CHANNELS, "model.kernel_size": [3, 5]},
            "search": {"use": "supernet", "steps": 10, **(search or {})},
            "objectives": {"val/accuracy": "max"},
            "trials": 4,
            **sweep,
        },
    }


def by_width(model: dict[str, Any]) -> float:
    """A made score: wider and deeper is better, and so is a large kernel."""
    return sum(model["channels"]) / 100 + model["kernel_size"] / 1000


class Trained:
    """In place of the training in a process: answers with made scores, and keeps what it was asked."""

    def __init__(self, score: Callable[[dict[str, Any]], float] = by_width) -> None:
        self.score = score
        self.asked: list[tuple[str, Feasible, Nets]] = []

    def __call__(self, workshop: Workshop, name: str, wide: Feasible, nets: Nets) -> Ranking:
        self.asked.append((name, wide, nets))
        weights = workshop.run.path / WEIGHTS_FILE
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.touch()
        return Ranking(
            tuple({"val/accuracy": self.score(dict(model))} for model in nets.models), str(weights), "0" * 64
        )


def prepared(
    path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], trained: Trained | None = None
) -> Source:
    """Return the sweep's source after its supernet has been trained."""
    job = load_spec(data)
    source = Source(data, job, build_space(job), Ledger(path / "ledger.jsonl"), Limits(Available.unknown()))
    monkeypatch.setattr(supernet_run, "train_supernet", trained or Trained())
    unused: Any = None
    source.searcher.prepare(source.workshop(RunDir(path), job, unused, lambda event: None, lambda: None))  # type: ignore[attr-defined]
    return source


def test_the_best_are_asked_first_and_begin_with_their_part_of_the_shared_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prepared(tmp_path, monkeypatch, sweep_data({"finetune": 0.5, "lr": 0.001}))
    found = [source.next() for _ in range(8)]
    points = [each[0].point for each in found if each is not None]
    assert [point["model.channels"] for point in points] == [[8, 16], [8, 16], [4, 8], [4, 8], [8], [8], [4], [4]]
    assert [point["model.kernel_size"] for point in points] == [5, 3] * 4
    assert source.next() is None
    assert source.ended == "every net that was ranked was fine-tuned"
    trial, feasible = found[1] or pytest.fail("asked for 8")
    train = feasible.job.train
    assert (train.epochs, feasible.job.optim.options["lr"]) == (0.5, 0.001)
    assert train.init is not None
    assert train.init.cut_from is not None
    assert train.init.cut_from.options == {"channels": [8, 16], "kernel_size": 5}
    assert trial.predicted == {"val/accuracy": 0.243}


def test_controls_are_trained_alone_and_span_the_ranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = prepared(tmp_path, monkeypatch, sweep_data({"control": 3}))
    found = [each for each in (source.next() for _ in range(11)) if each is not None]
    alone = [(trial, feasible) for trial, feasible in found if trial.origin == "control"]
    assert len(found) == 11
    assert [number for number, (trial, _) in enumerate(found) if trial.origin == "control"] == [1, 3, 5]
    assert [trial.point["model.channels"] for trial, _ in alone] == [[8, 16], [4], [8]]
    assert all(trial.point[ALONE] is None and trial.settings == {} for trial, _ in alone)
    assert all(feasible.job.train.init is None and feasible.job.train.epochs == 4 for _, feasible in alone)
    assert all(trial.predicted for trial, _ in alone)
    (name,) = {trial.ranked_by for trial, _ in found}
    assert name.startswith("supernet-")
    again = Ledger(tmp_path / "ledger.jsonl").trials
    assert {trial.ranked_by for trial in again.values()} == {name}, "a trial says itself which supernet ranked it"


def test_controls_of_a_sweep_that_ends_early_span_the_ranking_too() -> None:
    values = [{"val/accuracy": at / 100} for at in range(100)]
    places = control_places(values, [Objective("val/accuracy", "max")], 8)
    assert len(set(places)) == 8
    assert (min(places[:4]), max(places[:4])) == (0, 99)
    assert max(high - low for low, high in pairwise(sorted(places[:4]))) < 60


def test_every_control_that_is_asked_for_has_a_trial() -> None:
    assert problems(sweep={"search": {"use": "supernet", "control": 2}, "trials": 4}) == {}
    assert set(problems(sweep={"search": {"use": "supernet", "control": 3}, "trials": 5})) == {"sweep.search.control"}


def test_a_trial_of_an_earlier_start_keeps_its_weights_and_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(tmp_path, monkeypatch, sweep_data({"finetune": 0.5})).next()
    assert first is not None
    again = Ledger(tmp_path / "ledger.jsonl").trials[0]
    assert again.settings == first[0].settings
    assert again.predicted == first[0].predicted
    later = prepared(tmp_path, monkeypatch, sweep_data({"finetune": 3}))
    judged = later.judge(again)
    assert judged is not None
    assert judged.job == first[1].job


@pytest.mark.parametrize("older", [False, True])
def test_a_sweep_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool) -> None:
    """What its supernet's page and its ledger say of files is found where the folder lies now."""
    before, after = RunDir(tmp_path / "before"), RunDir(tmp_path / "after")
    place = RunDir(before.trials / "supernet-1")
    place.path.mkdir(parents=True)
    (place.path / WEIGHTS_FILE).write_bytes(b"weights")
    file = str(place.path / WEIGHTS_FILE)
    write_ranking(place, Ranking(({"val/accuracy": 0.5},), file, "0" * 64))
    ledger = Ledger(before.sweep / "ledger.jsonl")
    init = {"file": file, "sha256": "0" * 64, "cut_from": {"use": "cnn", "channels": [8]}}
    trial = ledger.propose(
        {"model.channels": [4]}, origin="search", asked=1, settings={ALONE: init, "train.epochs": 1.0}
    )
    source = prepared(tmp_path / "other", monkeypatch, sweep_data())
    feasible = source.judge(trial)
    assert feasible is not None
    ledger.begin(trial, 0, workers=1, job=trial_digest(feasible.job))
    ledger.close()
    pages = [ranking_path(place), ledger.path]
    assert not any(str(tmp_path) in page.read_text() for page in pages)
    if older:  # whole paths, as they were written once
        for page in pages:
            page.write_text(re.sub(r'"[^"]*weights.safetensors"', json.dumps(file), page.read_text()))
    before.path.rename(after.path)

    moved = after.trials / "supernet-1" / WEIGHTS_FILE
    found = read_ranking(RunDir(moved.parent), 1)
    assert found is not None
    assert found.file == str(moved)
    again = Ledger(after.sweep / "ledger.jsonl")
    require_same_trials(after, sweep_data(), again)
    assert again.trials[0].settings[ALONE] == {**init, "file": str(moved)}
    again.close()


def test_the_same_sweep_asks_for_the_same_supernet_and_another_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for data in (sweep_data(), sweep_data(trials=9), sweep_data({"steps": 11}), sweep_data({"random": 3})):
        trained = Trained()
        prepared(tmp_path / str(len(names)), monkeypatch, data, trained)
        names.append(trained.asked[0][0])
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_the_wide_net_is_trained_as_the_job_says_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained()
    data = sweep_data({"random": 1, "distill": False}, start=[{"model.channels": [4]}])
    data["parallel"] = {"replicate": 2}
    data["optim"] = {"lr": 0.02, "schedule": {"use": "cosine"}}
    prepared(tmp_path, monkeypatch, data, trained)
    (_, wide, nets), *others = trained.asked
    assert others == []
    assert (wide.job.model.options["channels"], wide.job.model.options["kernel_size"]) == ([8, 16], 5)
    assert (wide.job.optim, wide.job.data) == (load_spec(data).optim, load_spec(data).data)
    assert (wide.plan.layout.world_size, wide.plan.batch.total_steps) == (1, 10)
    assert (nets.num_random, nets.distill, len(nets.models)) == (1, False, 8)
    smallest = nets.models[0]  # in weights: the classifier of a shorter net sees a larger image
    assert (smallest["channels"], smallest["kernel_size"]) == ([4, 8], 3)


def test_infeasible_nets_are_neither_trained_nor_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained()
    prepared(tmp_path, monkeypatch, sweep_data(constraints=["plan.num_params <= 3000"]), trained)
    models = trained.asked[0][2].models
    assert 0 < len(models) < 8
    assert [8, 16] not in [model["channels"] for model in models if model["kernel_size"] == 5]


def test_a_space_without_a_feasible_net_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained()
    source = prepared(tmp_path, monkeypatch, sweep_data(constraints=["plan.num_params <= 3"]), trained)
    assert source.next() is None
    assert trained.asked == []
    assert source.ended.startswith("no net of the space is feasible, so none was trained (the first one: ")
    assert "plan.num_params <= 3" in source.ended


def test_of_a_large_space_a_population_is_drawn_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for seed in (0, 0, 1):
        trained = Trained()
        prepared(tmp_path / str(len(rows)), monkeypatch, sweep_data({"population": 4}, seed=seed), trained)
        rows.append(trained.asked[0][2].models)
    assert len(rows[0]) == 4
    assert rows[0] == rows[1] != rows[2]


def test_a_front_is_asked_from_both_ends_inwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sweep_data(objectives={"val/accuracy": "max", "model/params": "min", "time/latency_ms": "min"})
    data["sweep"]["space"]["model.kernel_size"] = [3]
    source = prepared(tmp_path, monkeypatch, data)
    found = [each[0].point["model.channels"] for each in (source.next() for _ in range(4)) if each is not None]
    assert found[:2] == [[8, 16], [4, 8]]  # the best, and the smallest: the flattened image makes [4] a large net


def test_orders() -> None:
    assert best_first([[1.0], [3.0], [2.0], [3.0]]) == [1, 3, 2, 0]
    assert best_first([[float("-inf")], [3.0], [float("-inf")]]) == [1, 0, 2]
    began = time.perf_counter()
    assert best_first([[float(at % 1999)] for at in range(2000)])[0] == 1998
    assert time.perf_counter() - began < 1.0, "not a pass over all nets for every net"
    many = [
        [[float(at), -float(at)] for at in range(1000)],  # one front
        [[float(at), float(at)] for at in range(1000)],  # a thousand fronts
        [[float(at * 37 % 101), float(at * 59 % 103), float(at * 7 % 11)] for at in range(1000)],
    ]
    began = time.perf_counter()
    assert [sorted(best_first(rows)) for rows in many] == [list(range(1000))] * 3
    assert time.perf_counter() - began < 3.0, "a third of a second each, on a machine that others use, too"
    assert best_first([]) == []
    assert best_first([[1.0, -1.0], [2.0, -2.0], [0.5, -3.0], [3.0, -3.0]]) == [3, 0, 1, 2]
    assert spread(0) == []
    assert spread(1) == [0]
    assert spread(5) == [0, 4, 2, 1, 3]
    assert sorted(spread(17)) == list(range(17))
    assert evenly(9, 3) == [0, 4, 8]
    assert evenly(9, 1) == [4]
    assert evenly(2, 5) == [0, 1]
    assert evenly(5, 0) == []


@pytest.mark.parametrize("seed", range(6))
def test_fronts_are_peeled_one_after_the_other(seed: int) -> None:
    """Against the definition, with ties and values that are missing."""
    numbers, columns = random.Random(seed), 2 + seed % 3
    values = [float("-inf"), *map(float, range(7))]
    rows = [[numbers.choice(values) for _ in range(columns)] for _ in range(80)]
    left, wanted = dict(enumerate(rows)), []
    while left:
        front = pareto_front(left)
        wanted += [front[at] for at in spread(len(front))]
        left = {key: row for key, row in left.items() if key not in front}
    assert best_first(rows) == wanted


def test_a_ranking_counts_only_with_its_weights_and_for_its_nets(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert read_ranking(run, 1) is None
    ranking = Ranking(({"val/accuracy": 0.5},), str(tmp_path / WEIGHTS_FILE), "0" * 64)
    write_ranking(run, ranking)
    assert read_ranking(run, 1) is None
    (tmp_path / WEIGHTS_FILE).touch()
    assert read_ranking(run, 1) == ranking
    assert read_ranking(run, 2) is None


def problems(**changes: Any) -> dict[str, str]:
    data = sweep_data()
    data["sweep"] |= changes.pop("sweep", {})
    return {each.path: each.message for each in find_sweep_problems({**data, **changes})}


def test_a_sound_search_has_no_problems() -> None:
    assert problems() == {}


def test_all_that_a_supernet_cannot_search_is_told_at_once() -> None:
    found = problems(
        sweep={
            "space": {
                "model.channels": CHANNELS,
                "model.pool": ["max", "avg"],
                "optim.lr": [0.1, 0.01],
                "compress.steps": [[], [{"use": "export"}]],
            },
            "objectives": {"model/params": "min"},
            "search": {"use": "supernet", "control": 4},
        }
    )
    together = "it is no part of the model, and all nets of a supernet are trained together, in one way"
    assert found == {
        "sweep.space.model.pool": "nets of cnn that share weights cannot differ in pool",
        "sweep.space.optim.lr": together,
        "sweep.space.compress.steps": together,
        "sweep.objectives": (
            "nets are ranked by a metric of the validation split, and the objectives are model/params"
        ),
        "sweep.search.control": "nets trained alone take turns with those fine-tuned: 4 trials are too few for 4",
    }


def test_a_model_without_parts_and_a_choice_of_models_are_refused() -> None:
    mlp = {"use": "mlp", "inputs": 64, "hidden": [8], "outputs": 10}
    found = problems(model=mlp, data={"use": "digits", "flat": True}, sweep={"space": {"model.hidden": [[4], [8]]}})
    assert found == {"sweep.search.use": "model mlp does not say which of its nets are parts of which"}
    both = problems(sweep={"space": {"model": [{"use": "cnn", "channels": [4]}, {"use": "cnn", "channels": [8]}]}})
    assert both == {"sweep.space.model": "only nets of one model can share weights"}


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"epochs": 1, "steps": 5}, "give epochs or steps, not both"),
        ({"finetune": 0}, "finetune must be above 0, not 0"),
        ({"random": -1}, "random and control must be at least 0"),
    ],
)
def test_bad_options_are_told_when_the_job_is_read(search: dict[str, Any], words: str) -> None:
    data = sweep_data()
    data["sweep"]["search"] = {"use": "supernet", **search}
    with pytest.raises(JobFileError) as caught:
        load_spec(data)
    assert words in str(caught.value.problems[0].message)


def test_what_the_supernet_took_counts_towards_the_budget_of_worker_seconds(tmp_path: Path) -> None:
    section, ledger = load_spec(sweep_data(worker_s=10.0)).sweep, Ledger(tmp_path / "ledger.jsonl")
    assert section is not None
    folder = RunDir(tmp_path / "trials" / "supernet-1")
    folder.path.mkdir(parents=True)
    write_ranking(folder, Ranking((), "", "", train_s=9.0, rank_s=1.5))
    assert supernet_seconds(RunDir(tmp_path)) == 10.5
    assert budget_spent(section, ledger, 0.0, 9.5) == ""
    assert budget_spent(section, ledger, 0.0, 10.5) == "the budget of 10 worker seconds is spent"
