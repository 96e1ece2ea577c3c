"""The JSON Schema and the reference are those of the code, and editors can use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.spec.load import load_job, load_spec
from orchestrator.spec.reference import reference
from orchestrator.spec.resolve import resolved_data, resolved_text
from orchestrator.spec.schema import full_schema, schema_text
from orchestrator.spec.yaml import read

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("**/*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = full_schema(built_in=True)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_up_to_date() -> None:
    advice = "run `orchestrator schema > jobs/job.schema.json`"
    assert (ROOT / "jobs/job.schema.json").read_text() == schema_text(), advice


def test_the_committed_reference_is_up_to_date() -> None:
    assert (ROOT / "docs/jobs.md").read_text() == reference(), "run `orchestrator schema --markdown > docs/jobs.md`"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_loads_fits_the_schema_and_survives_being_resolved(path: Path, validator: Any) -> None:
    up = "./" if path.parent == ROOT / "jobs" else "../"
    assert path.read_text().startswith(f"# yaml-language-server: $schema={up}job.schema.json\n")
    job = load_job(path)
    validator.validate(job.data)
    again = load_spec(read(resolved_text(job.spec), "resolved").data)
    assert resolved_data(again) == resolved_data(job.spec)
    validator.validate(resolved_data(job.spec))


@pytest.mark.parametrize(
    "data",
    [
        {"model": {"use": "cnn", "chanels": [1]}, "data": {"use": "digits"}},
        {"model": {"use": "cnn"}},
        {"model": {"use": "cnn"}, "data": {"use": "digits"}, "optim": {"use": "sgd", "betas": [0.9, 0.99]}},
        {"model": {"use": "cnn"}, "data": {"use": "digits"}, "optim": {"schedule": {"use": "cosine", "x": 1}}},
        {"model": {"use": "cnnn"}, "data": {"use": "digits"}},
        {"extends": "base.yaml", "train": {"bath_size": 1}},
    ],
)
def test_an_editor_sees_mistakes_in_parts_too(data: dict[str, Any], validator: Any) -> None:
    assert list(validator.iter_errors(data))


def test_an_editor_accepts_a_users_own_part_and_a_file_that_extends(validator: Any) -> None:
    validator.validate({"model": {"use": "my_nets:Net", "any": 1}, "data": {"use": "digits"}, "optim": {"lr": 1}})
    validator.validate({"extends": ["base.yaml"], "train": {"epochs": 2}})


def test_the_schema_describes_every_key_of_the_job() -> None:
    schema = json.loads(schema_text())
    silent = [key for key, value in schema["$defs"]["TrainSection"]["properties"].items() if "description" not in value]
    assert [key for key in silent if "$ref" not in schema["$defs"]["TrainSection"]["properties"][key]] == []
