"""A TorchTrainer for the cluster we start ourselves: Train's own controller, run in the driver, without other helpers.

Train starts a controller, an autoscaler client, a placement-group cleaner and a data-set manager, processes of two to
four CPU seconds each, before the first worker. On a cluster that lives and dies with the driver the controller can as
well run here, where Ray Train is imported already; such a cluster autoscales nothing, leaks no group and serves no Ray
data sets. What is overridden is internal to Ray, whose minor version is pinned for that reason.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup

_NOT_NEEDED = {"PlacementGroupCleanerCallback", "DatasetsCallback"}


class _OwnClusterPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """The fixed number of workers, without asking an autoscaler for them."""

    def after_controller_start(self, train_run_context: object) -> None:
        """Do not start the coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """Ask nobody."""


class _DriverWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """Workers whose controller is no actor; they would ask it only for checkpoints, and those are ours."""

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        begun = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[index] for name, values in train_context_args.items()},
            )
            for index, worker in enumerate(workers)
        ]
        ray.get(begun)
        self._decorate_worker_log_file_paths(workers)


class _DriverController(TrainController):  # type: ignore[misc]
    """Train's controller with such workers."""

    worker_group_cls = _DriverWorkerGroup


class LeanTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer with only those processes, callbacks and policies that a private cluster needs."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in _NOT_NEEDED]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        controller = _DriverController(**{**arguments, "scaling_policy": _OwnClusterPolicy(self.scaling_config)})
        asyncio.run(controller.run())
        return controller.get_result()
