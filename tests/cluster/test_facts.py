"""What the tracking store is told of a run: flat parameters without secrets, and where its page looks for things."""

from __future__ import annotations

import pytest

from orchestrator.cluster import facts
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

JOB = JobSpec.model_validate(
    {
        "model": {"use": "mlp", "inputs": 64, "hidden": [8], "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "parallel": {"replicate": 1},
        "track": {"uri": "http://me:hunter2@example.org", "tags": {"team": "a"}},
    }
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return build_plan(JOB, Available(2.0, 0, 2**33))


def test_lists_of_mappings_become_dotted_keys_and_other_lists_stay() -> None:
    assert facts.flatten({"a": [{"b": 1}, {"b": 2}], "c": [1, 2]}) == {"a.0.b": 1, "a.1.b": 2, "c": [1, 2]}


def test_parameters_are_flat_and_hold_no_password(plan: Plan) -> None:
    found = facts.params(JOB, plan)
    assert found["model.use"] == "mlp"
    assert found["plan.world_size"] == "1"
    assert "hunter2" not in str(found)


def test_mlflows_page_is_told_who_ran_what_from_which_commit(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "git_tags", lambda: {"git.commit": "abc", "git.dirty": "true"})
    monkeypatch.setattr(facts.getpass, "getuser", lambda: "ada")
    found = facts.tags(JOB, plan, "job-1", "orchestrator run job.yaml")
    assert found["mlflow.user"] == "ada"
    assert found["mlflow.source.name"] == "orchestrator run job.yaml"
    assert found["mlflow.source.git.commit"] == found["git.commit"] == "abc"
    assert found["team"] == "a"


def test_a_user_without_a_name_and_no_repository_leave_no_empty_tags(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr(facts.getpass, "getuser", nameless)
    monkeypatch.setattr(facts, "git_tags", dict)
    found = facts.tags(JOB, plan, "job-1", "orchestrator run job.yaml")
    assert "mlflow.user" not in found
    assert "mlflow.source.git.commit" not in found
