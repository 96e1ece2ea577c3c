"""`Shipper`: one method for each kind of spool record, each safe to repeat. Used by the sender process only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError
from orchestrator.log import get_logger, redact, redact_value
from orchestrator.runs.paths import RunDir
from orchestrator.tracking.request import TrackingRequest, read_state, write_state
from orchestrator.tracking.store import is_rejection

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PARAMS = 100
_log = get_logger("tracking")


class RecordError(Exception):
    """A record that can never be shipped as it is; it is set aside."""


class RunGoneError(Exception):
    """The MLflow run was deleted while we write to it; nothing is set aside, it may be restored, unless `is_purged`."""

    def __init__(self, message: str, *, is_purged: bool = False) -> None:
        super().__init__(message)
        self.is_purged = is_purged


@dataclass(frozen=True)
class Point:
    """One metric value; `time_ms` is the original time, which makes sending it again harmless."""

    key: str
    value: float
    step: int
    time_ms: int


class Shipper:
    """Sends records to one MLflow run. Methods raise RecordError for a bad record, anything else means: try again."""

    def __init__(self, client: MlflowClient, run: RunDir, request: TrackingRequest, experiment_id: str, run_id: str):
        self.client = client
        self.run = run
        self.request = request
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._kinds: dict[str, Callable[[dict[str, Any]], None]] = {
            "params": lambda record: self.send_params(record["values"]),
            "tags": lambda record: self.send_tags(record["values"]),
            "dataset": self._send_dataset,
            "artifact": self._send_artifact,
            "text": lambda record: self.client.log_text(self.run_id, redact(record["text"]), record["artifact_file"]),
            "note": lambda record: self.send_tags({"mlflow.note.content": record["text"]}),
            "model": self._send_model,
            "experts": lambda record: None,  # drawn at the end: hundreds of curves would bury the others
        }

    def send(self, record: dict[str, Any]) -> None:
        """Send one record that is neither metrics nor status."""
        kind = str(record.get("kind"))
        if kind not in self._kinds:
            raise RecordError(f"unknown kind of record '{kind}'")
        try:
            self._kinds[kind](record)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            FileNotFoundError,
            ImportError,
            OrchestratorError,
        ) as error:
            raise RecordError(f"{type(error).__name__}: {error}") from error
        except Exception as error:  # mlflow's edge: it raises many kinds; a refusal is the record's fault
            self._raise_if_refused(error)
            raise

    def send_metrics(self, points: Sequence[Point], set_aside: Callable[[Point, str], None]) -> None:
        """Send at most 1000 points in one request; when it is refused, halve it until the bad points stand alone."""
        from mlflow.entities import Metric

        if not points:
            return
        try:
            metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
            self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        except Exception as error:  # mlflow's edge, as above
            try:
                self._raise_if_refused(error)
            except RecordError as refused:
                if len(points) == 1:
                    set_aside(points[0], str(refused))
                    return
                middle = len(points) // 2
                self.send_metrics(points[:middle], set_aside)
                self.send_metrics(points[middle:], set_aside)
                return
            raise

    def send_params(self, values: Mapping[str, Any]) -> None:
        """Send flat parameters, secrets masked, cut at MLflow's limit, at most 100 a request."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        params = [Param(key, redact_value(key, value)[:MAX_PARAM_VAL_LENGTH]) for key, value in values.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._send_each(params[start : start + MAX_PARAMS], "params")

    def send_tags(self, values: Mapping[str, Any]) -> None:
        """Send tags, secrets masked, cut at MLflow's limit; a later value replaces an earlier one."""
        from mlflow.entities import RunTag
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        tags = [RunTag(key, redact_value(key, value)[:MAX_TAG_VAL_LENGTH]) for key, value in values.items()]
        for start in range(0, len(tags), MAX_PARAMS):
            self._send_each(tags[start : start + MAX_PARAMS], "tags")

    def status(self) -> str:
        """Return the run's status as MLflow has it."""
        return str(self.client.get_run(self.run_id).info.status)

    def finish(self, status: str, time_ms: int) -> None:
        """Set the terminal status with the true end time (ms since 1970)."""
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise RecordError(f"status '{status}' is none of FINISHED, FAILED, KILLED")
        try:
            self.client.set_terminated(self.run_id, status=status, end_time=time_ms or time.time_ns() // 1_000_000)
        except Exception as error:  # mlflow's edge, as above
            self._raise_if_outage(error)
            raise

    def _send_each(self, entities: list[Any], what: str) -> None:
        try:
            self.client.log_batch(self.run_id, synchronous=True, **{what: entities})
        except Exception as error:  # mlflow's edge: one refused parameter must not take the other 99 with it
            if len(entities) == 1 or not is_rejection(error):
                raise
            refused = []
            for entity in entities:
                try:
                    self.client.log_batch(self.run_id, synchronous=True, **{what: [entity]})
                except Exception as single:  # mlflow's edge, as above
                    self._raise_if_outage(single)
                    refused.append(f"{entity.key}: {redact(str(single)).splitlines()[0]}")
            if refused:
                raise RecordError("; ".join(refused)) from error

    def _send_dataset(self, record: dict[str, Any]) -> None:
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {key: record[key] for key in ("num_samples", "num_classes", "shape") if key in record}
        source = json.dumps({"uri": redact(str(record.get("source", "")))})
        data = Dataset(
            name=str(record["name"])[:500],
            digest=str(record["digest"])[:36],
            source_type="orchestrator",
            source=source,
            profile=json.dumps(profile),
        )
        tags = [InputTag("mlflow.data.context", str(record.get("context", "training")))]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(data, tags)])

    def _send_artifact(self, record: dict[str, Any]) -> None:
        path = Path(record["path"])
        place = record.get("artifact_path") or None
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), place)
        elif path.is_file():
            self.client.log_artifact(self.run_id, str(path), place)
        else:
            raise FileNotFoundError(f"no file or folder {path}")

    def _send_model(self, record: dict[str, Any]) -> None:
        from orchestrator.tracking.model import register_model

        version = register_model(self.client, self.run, self.request, self.experiment_id, self.run_id, record)
        if version is not None:
            name = "compressed_version" if record.get("flavour") else "model_version"
            write_state(self.run, read_state(self.run), **{name: version})

    def _raise_if_refused(self, error: Exception) -> None:
        """Raise RecordError when the record is at fault, RunGoneError when the run is; return when it is an outage."""
        if not is_rejection(error):
            return
        self._raise_if_gone(error)
        raise RecordError(redact(str(error)).strip().splitlines()[0]) from error

    def _raise_if_outage(self, error: Exception) -> None:
        if not is_rejection(error):
            raise error
        self._raise_if_gone(error)

    def _raise_if_gone(self, error: Exception) -> None:
        try:
            stage = self.client.get_run(self.run_id).info.lifecycle_stage
        except Exception as probe:  # mlflow's edge: the probe decides whose fault it is
            if is_rejection(probe):
                message = f"the MLflow run {self.run_id} does not exist any more"
                raise RunGoneError(message, is_purged=True) from error
            raise
        if stage != "active":
            raise RunGoneError(f"the MLflow run {self.run_id} was deleted; restore it and shipping goes on") from error
