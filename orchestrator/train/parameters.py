"""Names and shapes of a model's parameters, without their memory: what patterns of `optim.groups` match."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import OrchestratorError, PlanError
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class Parameter:
    """One parameter. `trains` is false for one that the optimiser leaves alone."""

    name: str
    shape: tuple[int, ...]
    trains: bool


def list_parameters(job: JobSpec) -> list[Parameter]:
    """Return the parameters in the model's order; the model is built on torch's meta device, so its code is run.

    Raises PlanError when it cannot be built there, JobFileError when its options do not fit.
    """
    from orchestrator.train.build import build_plain_model

    try:
        module = build_plain_model(job, on_meta=True)
    except OrchestratorError:
        raise
    except Exception as error:  # a user's own code, which may fail in any way on a device without numbers
        raise PlanError(
            f"model {job.model.use} cannot be built without memory: {type(error).__name__}: {error}",
            hint="its parameters are known once it trains",
        ) from error
    return [Parameter(name, tuple(each.shape), each.requires_grad) for name, each in module.named_parameters()]


def in_lines(parameters: list[Parameter]) -> list[str]:
    """Return a line for each parameter, names and shapes below one another."""
    width = max((len(each.name) for each in parameters), default=0)
    return [
        f"{each.name:<{width}}  {' x '.join(map(str, each.shape)) or 'scalar'}{'' if each.trains else '  (frozen)'}"
        for each in parameters
    ]
