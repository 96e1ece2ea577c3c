"""`CheckpointSaver`: the engine's state in and out of the checkpoint store."""

from __future__ import annotations

from pathlib import Path

from orchestrator.checkpoint.fork import Fork
from orchestrator.checkpoint.manifest import CheckpointMeta, CheckpointRef, read_manifest
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.errors import CheckpointError
from orchestrator.log import get_logger
from orchestrator.plan.layout import AXES
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import Engine
from orchestrator.train.progress import Progress
from orchestrator.train.state import model_state, optimizer_state, put_optimizer_state

_log = get_logger("train")


class CheckpointSaver:
    """Saves and restores an engine. One per rank; every method is collective."""

    def __init__(
        self,
        folder: Path,
        job: JobSpec,
        store: CheckpointStore,
        *,
        mlflow_run_id: str = "",
        fork: Fork | None = None,
    ) -> None:
        """`fork` is the one checkpoint of another job that this one may begin from."""
        self._folder = folder
        self._fork = fork
        self._store = store
        self._digest = job_digest(job)
        self._mlflow_run_id = mlflow_run_id
        self._newest: str | None = None

    def restore(self, engine: Engine) -> Progress | None:
        """Load the newest checkpoint that verifies; None when none was ever committed.

        Of a training that begins here from another's, weights, optimiser state and random numbers are the other's;
        what is counted (best evaluation, seconds) begins anew. Raises CheckpointError when there are some but none
        verifies, when it belongs to another model or data, or when the other's checkpoint is not there.
        """
        ref = self._store.find_newest()
        if ref is None:
            self._require_no_fork()
            return None
        begins = self._fork is not None and self._fork.is_of(ref.path)
        if not begins:
            self._check_same_job(ref)
        model, optim = model_state(engine), optimizer_state(engine)
        partial = engine.model.pipeline is not None
        meta = self._store.load_into(ref, {"model": model, "optim": optim}, partial=partial)
        engine.model.module.load_state_dict(model)
        put_optimizer_state(engine, optim)
        self._store.restore_rng(ref, seed=engine.job.train.seed)
        self._newest = ref.name
        for skipped in ref.skipped:
            _log.warning("checkpoint %s was passed over: %s", skipped.name, skipped.reason)
        progress = Progress.from_json(dict(meta.monitor))
        _log.info("resumed from %s at step %d", ref.name, progress.step)
        return progress.anew() if begins else progress

    def save(self, engine: Engine, progress: Progress, *, best: bool) -> float:
        """Save; return the seconds that training waited."""
        batch, step = engine.plan.batch, progress.step
        position = step * batch.global_batch
        meta = CheckpointMeta(
            step=step,
            epoch=position // batch.num_train_samples,
            samples=position % batch.num_train_samples,
            seed=engine.job.train.seed,
            job_digest=self._digest,
            layout=dict(zip(AXES, engine.plan.layout.degrees, strict=True)),
            monitor=progress.as_json(),
            metrics=dict(progress.last_metrics),
            mlflow_run_id=self._mlflow_run_id,
        )
        state = {"model": model_state(engine), "optim": optimizer_state(engine)}
        return self._store.save(state, meta, best=best)

    def finish(self, progress: Progress) -> tuple[str | None, str | None]:
        """Wait until everything is committed; return the names of the best and the newest checkpoint."""
        self._store.wait()
        newest = self._store.last_committed
        self._store.close()
        return self._find_best(progress.best_step), newest.name if newest else self._newest

    def _find_best(self, step: int | None) -> str | None:
        """The best may have been saved by an earlier attempt, so it is looked for by its step."""
        if step is None:
            return None
        for path in sorted(self._folder.glob(f"step-{step:08d}-*"), reverse=True):
            try:
                if read_manifest(path).best:
                    return path.name
            except (CheckpointError, OSError):
                continue
        return None

    def _require_no_fork(self) -> None:
        if self._fork is not None:
            raise CheckpointError(
                f"{self._fork.checkpoint}, from which this training begins, is not in {self._folder}",
                hint="restore the folder from a copy: no training silently starts from scratch",
            )

    def _check_same_job(self, ref: CheckpointRef) -> None:
        if ref.meta.job_digest != self._digest:
            raise CheckpointError(
                f"{ref.name} was saved by a job with another model, data, optimiser or training section",
                hint="resume with the same job file, or start a new run with this one",
            )
