"""A population without processes: who begins from whom, also after kills, stops and failures, and what is kept."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.failure import Failure
from orchestrator.errors import CheckpointError, JobFileError
from orchestrator.plan.available import Available
from orchestrator.runs.paths import RunDir
from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import build_space
from orchestrator.sweep.feasible import Limits
from orchestrator.sweep.generations import trials_of
from orchestrator.sweep.importance import importance
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.population import explore
from orchestrator.sweep.summary import Summary, as_csv
from orchestrator.sweep.trial import Trial
from tests.sweep.fakes import DriverKilledError, FakePool, Trainer, drive, folder_for, release_leases
from tests.sweep.jobs import tiny_sweep
from tests.sweep.test_drive import check_closed, kill_at, lines_of, stop_at
from tests.tiers import sample_of

DIED = Failure("infra", "WorkerDied", "a worker process ended without a word")
OOM = Failure("oom", "Killed", "killed because memory ran out")
DIVERGED = Failure("train", "TrainError", "the loss was nan")
STARTS = [{"optim.lr": each} for each in (0.01, 0.08, 0.02, 0.04)]


def population_of(folder: Path, search: dict[str, Any] | None = None, **sweep: Any) -> dict[str, Any]:
    given = {
        "space": {"optim.lr": {"min": 0.001, "max": 0.1, "log": True}},
        "search": {"use": "pbt", "population": 4, **(search or {})},
        "trials": None,
        "start": STARTS,
        **sweep,
    }
    return tiny_sweep(folder / "runs", given)


def measure(lr: float, step: int, weight: float) -> float:
    """A made loss: the weight, to which every step adds its learning rate, should become 1."""
    return abs(1.0 - weight)


def trainer(faults: dict[tuple[str, int], tuple[int, Failure]] | None = None) -> Trainer:
    return Trainer(faults, measure)


def told(trial: Trial) -> tuple[Any, ...]:
    birth = trial.birth
    assert birth is not None
    last = trial.curve[-1][1]["val/loss"] if trial.curve else None
    return birth, trial.origin, trial.state, dict(trial.point), trial.step, last


def members(trials: dict[int, Trial], generation: int) -> dict[int, Trial]:
    found = {}
    for trial in trials.values():
        if trial.birth is not None and trial.birth.generation == generation and trial.state != "infeasible":
            found[trial.birth.member] = trial
    return found


def test_a_generation_begins_from_the_checkpoints_of_the_one_before(tmp_path: Path) -> None:
    data = population_of(tmp_path)
    run = folder_for(data)
    drive(run, data, FakePool(trainer()))
    ledger = Ledger(run.sweep / "ledger.jsonl")
    ledger.close()
    assert len(ledger.trials) == 16
    first = members(ledger.trials, 0)
    assert [trial.point for _, trial in sorted(first.items())] == STARTS
    weights = {trial.number: 5 * float(trial.point["optim.lr"]) for trial in first.values()}
    for generation in (1, 2, 3):
        former, now = members(ledger.trials, generation - 1), members(ledger.trials, generation)
        losses = {member: measure(0, 0, weights[trial.number]) for member, trial in former.items()}
        best = min(losses, key=lambda each: (losses[each], each))
        worst = max(losses, key=lambda each: (losses[each], each))
        for member, trial in now.items():
            assert trial.birth is not None
            parent = former[best if member == worst else member]
            assert trial.birth.parent == parent.number
            assert (trial.birth.begins, trial.birth.until) == (5 * generation, 5 * generation + 5)
            assert (trial.point == parent.point) == (member != worst)
            assert trial.origin == ("explored" if member == worst else "kept")
            weights[trial.number] = weights[parent.number] + 5 * float(trial.point["optim.lr"])
            assert trial.curve == [(5 * generation + 5, {"val/loss": pytest.approx(abs(1 - weights[trial.number]))})]
            assert (trial.state, trial.step, trial.total_steps) == ("finished", 5 * generation + 5, 5 * generation + 5)
    check_closed(run, ledger.trials)


def test_a_generation_waits_for_the_one_before_also_with_room_for_all(tmp_path: Path) -> None:
    one_data, many_data = population_of(tmp_path / "one"), population_of(tmp_path / "many")
    one = drive(folder_for(one_data), one_data, FakePool(trainer()))
    many_run = folder_for(many_data)
    many = drive(many_run, many_data, FakePool(trainer(), slots=7))
    assert one.ended == many.ended == "all 4 generations"
    assert list(map(told, many.ledger.trials.values())) == list(map(told, one.ledger.trials.values()))
    under_way: set[int] = set()
    for line in lines_of_all(many_run):
        if line["event"] == "proposed":
            begun = line["birth"]["generation"]
            assert all(number // 4 == begun for number in under_way)
            under_way.add(line["trial"])
        elif line["event"] == "ended":
            under_way.remove(line["trial"])


def lines_of_all(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.sweep / "ledger.jsonl").read_text().splitlines()]


def test_members_that_failed_are_replaced(tmp_path: Path) -> None:
    data = population_of(tmp_path, search={"interval": 2})
    data["cluster"]["max_failures"] = 0
    faults = {("t000", 1): (3, OOM), ("t001", 1): (9, DIVERGED), ("t003", 1): (2, DIED)}
    run = folder_for(data)
    loop = drive(run, data, FakePool(trainer(faults)))
    first, second = members(loop.ledger.trials, 0), members(loop.ledger.trials, 1)
    assert [first[each].state for each in range(4)] == ["oom", "diverged", "finished", "failed"]
    assert {trial.birth.parent for trial in second.values() if trial.birth} == {2}
    assert [second[each].origin for each in range(4)] == ["explored", "explored", "kept", "explored"]
    assert all(trial.state == "finished" for trial in second.values())


def test_a_population_without_a_survivor_ends_the_sweep(tmp_path: Path) -> None:
    data = population_of(tmp_path)
    loop = drive(folder_for(data), data, FakePool(trainer({(f"t{each:03d}", 1): (3, OOM) for each in range(4)})))
    assert loop.ended == "no member of generation 0 has a result"
    assert len(loop.ledger.trials) == 4


def test_infeasible_values_are_noted_and_others_are_taken(tmp_path: Path) -> None:
    data = population_of(tmp_path, search={"quantile": 0.5}, constraints=["optim.lr <= 0.08"])
    loop = drive(folder_for(data), data, FakePool(trainer()))
    trials = list(loop.ledger.trials.values())
    shut_out = [trial for trial in trials if trial.state == "infeasible"]
    assert shut_out, "this space and seed give some"
    assert sum(trial.state == "finished" for trial in trials) == 16
    for trial in shut_out:
        assert trial.birth is not None
        seat = members(loop.ledger.trials, trial.birth.generation)[trial.birth.member]
        assert seat.number > trial.number


def test_a_parents_checkpoint_stays_until_its_children_have_it(tmp_path: Path) -> None:
    data = population_of(tmp_path)
    run = folder_for(data)
    seen: list[tuple[int, set[int]]] = []

    def look(number: int) -> None:
        ledger = Ledger(run.sweep / "ledger.jsonl")
        ledger.close()
        there = {int(path.parent.name[1:]) for path in run.trials.glob("*/checkpoints") if any(path.iterdir())}
        for trial in ledger.trials.values():
            if trial.birth is None or trial.state != "finished" or trial.birth.generation == 3:
                continue
            children = members(ledger.trials, trial.birth.generation + 1).values()
            if len(children) < 4 or any(each.fork is None for each in children):
                assert trial.number in there
        seen.append((len(ledger.trials), there))

    loop = drive(run, data, FakePool(trainer(), on_event=look))
    best = min(loop.ledger.trials.values(), key=lambda each: each.values["val/loss"])
    left = {path.parent.name for path in run.trials.glob("*/checkpoints") if any(path.iterdir())}
    assert left == {best.name}
    assert max(len(there) for _, there in seen) <= 10, "two generations, the best, and one that is under way"


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_population_that_was_ended_goes_on_as_one_never_ended(tmp_path: Path, how: str) -> None:
    end_and_resume(tmp_path, how, numbers=[3, 11])


@pytest.mark.parametrize("how", sample_of(["killed", "stopped"], 1, seed=1))
def test_so_it_does_when_ended_at_any_moment(tmp_path: Path, how: str) -> None:
    end_and_resume(tmp_path, how, numbers=range(1, 33))


def end_and_resume(tmp_path: Path, how: str, numbers: Any) -> None:
    whole_data = population_of(tmp_path / "whole")
    whole = drive(folder_for(whole_data), whole_data, FakePool(trainer()))
    for number in numbers:
        data = population_of(tmp_path / f"{number}")
        run = folder_for(data)
        slots = 1 + number % 3
        if how == "killed":
            with pytest.raises(DriverKilledError):
                drive(run, data, FakePool(trainer(), slots=slots, on_event=kill_at(number)))
            release_leases(run)
        else:
            drive(run, data, FakePool(trainer(), slots=slots, on_event=stop_at(run, number)))
        again = drive(run, data, FakePool(trainer()))
        assert list(map(told, again.ledger.trials.values())) == list(map(told, whole.ledger.trials.values())), number
        ended = [line["trial"] for line in lines_of(run, "ended") if line["state"] == "finished"]
        assert sorted(ended) == list(range(16)), "each ends once"
        check_closed(run, again.ledger.trials)


def test_a_driver_killed_between_link_and_ledger_links_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_data = population_of(tmp_path / "whole")
    whole = drive(folder_for(whole_data), whole_data, FakePool(trainer()))
    data = population_of(tmp_path / "killed")
    run = folder_for(data)

    def die(*given: Any) -> None:
        raise DriverKilledError

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "fork", die)
        with pytest.raises(DriverKilledError):
            drive(run, data, FakePool(trainer()))
    release_leases(run)
    again = drive(run, data, FakePool(trainer()))
    assert list(map(told, again.ledger.trials.values())) == list(map(told, whole.ledger.trials.values()))


def test_an_evaluation_that_a_power_cut_took_from_the_ledger_still_decides(tmp_path: Path) -> None:
    whole_data = population_of(tmp_path / "whole")
    whole = drive(folder_for(whole_data), whole_data, FakePool(trainer()))
    data = population_of(tmp_path / "cut")
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(trainer(), on_event=kill_at(8)))  # t003 has saved at its end, and has not said so
    release_leases(run)
    path = run.sweep / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert '"event":"evaluated"' in lines[-1]
    path.write_text("".join(lines[:-1]))
    again = drive(run, data, FakePool(trainer()))
    assert list(map(told, again.ledger.trials.values())) == list(map(told, whole.ledger.trials.values()))


def test_a_parent_whose_checkpoint_is_gone_ends_the_sweep_with_the_reason(tmp_path: Path) -> None:
    data = population_of(tmp_path)
    run = folder_for(data)

    def lose(number: int) -> None:
        for path in run.trials.glob("t001/checkpoints/*/manifest.json"):
            path.unlink()

    with pytest.raises(CheckpointError, match=r"trials/t00\d/checkpoints has no checkpoint of step 5"):
        drive(run, data, FakePool(trainer(), on_event=lose))


def test_fewer_trials_are_fewer_generations_and_more_of_them_go_on(tmp_path: Path) -> None:
    whole_data = population_of(tmp_path / "whole")
    whole = drive(folder_for(whole_data), whole_data, FakePool(trainer()))
    data = population_of(tmp_path / "parts", trials=8)
    run = folder_for(data)
    part = drive(run, data, FakePool(trainer()))
    assert (len(part.ledger.trials), part.ended) == (8, "all 8 trials")
    data["sweep"]["trials"] = 16
    again = drive(run, data, FakePool(trainer()))
    assert list(map(told, again.ledger.trials.values())) == list(map(told, whole.ledger.trials.values()))


def test_the_first_generation_is_drawn_where_no_start_points_are_given(tmp_path: Path) -> None:
    data = population_of(tmp_path, start=[], trials=4)
    loop = drive(folder_for(data), data, FakePool(trainer()))
    assert len({trial.digest for trial in loop.ledger.trials.values()}) == 4
    assert {trial.origin for trial in loop.ledger.trials.values()} == {"search"}


def test_a_trials_job_file_and_tags_say_from_whom_it_began(tmp_path: Path) -> None:
    data = population_of(tmp_path, trials=8)
    run = folder_for(data)
    loop = drive(run, data, FakePool(trainer()))
    child = members(loop.ledger.trials, 1)[2]
    assert child.birth is not None
    parent = loop.ledger.trials[child.birth.parent or 0]
    text = (run.trials / child.name / "job.yaml").read_text()
    assert f"# It begins from the checkpoint of {parent.name} at step 5 and ends at step 10. Run alone," in text
    request = json.loads((run.trials / child.name / "tracking.json").read_text())
    tags = {key: value for key, value in request["tags"].items() if key.startswith("pbt.")}
    assert tags == {"pbt.generation": "1", "pbt.member": "2", "pbt.parent": parent.name}
    first = (run.trials / "t000" / "job.yaml").read_text()
    assert "# It begins like any run and ends at step 5. Run alone," in first


def test_the_page_of_trials_says_generation_and_parent(tmp_path: Path) -> None:
    data = population_of(tmp_path, trials=8)
    loop = drive(folder_for(data), data, FakePool(trainer()))
    job = load_spec(data)
    summary = Summary(job, loop.source.objectives, loop.ledger.trials, (7,), 1.0)
    lines = [line.split(",") for line in as_csv(summary).splitlines()]
    assert lines[0][:7] == ["trial", "state", "front", "origin", "generation", "parent", "lr"]
    assert [line[4:6] for line in lines[1:5]] == [["0", ""]] * 4
    for line, trial in zip(lines[1:], loop.ledger.trials.values(), strict=True):
        if trial.birth is not None and trial.birth.parent is not None:
            assert line[4:6] == ["1", loop.ledger.trials[trial.birth.parent].name]


def test_how_many_trials_there_are_to_be_is_known_before(tmp_path: Path) -> None:
    def count(**sweep: Any) -> int | None:
        data = population_of(tmp_path, **sweep)
        job = load_spec(data)
        return trials_of(data, job, build_space(job), Limits(Available.unknown()))

    assert count() == 16
    assert count(search={"interval": 3}) == 8
    assert count(trials=8) == 8


def test_a_cluster_that_is_too_small_is_said_before_anybody_is_proposed(tmp_path: Path) -> None:
    data = population_of(tmp_path) | {"parallel": {"replicate": 4}}
    job = load_spec(data)
    with pytest.raises(JobFileError, match=r"none of 200 drawn points .* do not fit the cluster, which has room for 2"):
        trials_of(data, job, build_space(job), Limits(Available.unknown(), 2))


def test_importance_is_that_of_trials_that_began_anew(tmp_path: Path) -> None:
    data = population_of(
        tmp_path, space={"optim.lr": {"min": 0.001, "max": 0.1}, "optim.eps": {"min": 1e-9, "max": 1e-7}}
    )
    loop = drive(folder_for(data), data, FakePool(trainer()))
    assert len(loop.ledger.trials) == 16
    space = build_space(load_spec(data))
    assert importance(list(loop.ledger.trials.values()), space, loop.source.objectives) == {}  # of four


def test_exploring_says_nothing_of_what_the_space_does_not_have() -> None:
    from tests.sweep.test_population import space_of

    space = space_of({"optim.lr": {"min": 1e-4, "max": 0.1, "log": True}})
    found = explore(space, {"optim.lr": 0.01, "optim.eps": 1.0}, random.Random(0), perturb=1.2, resample=0.0)
    assert list(found) == ["optim.lr"]
