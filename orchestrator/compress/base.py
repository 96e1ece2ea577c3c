"""What a compression step is: a pure function from one state of a model to the next. No torch is imported here.

A step is a plug-in of the group `compressors`: `Config`, `flow(config) -> (takes, gives)` over the names of
`spec.steps.STATES`, `build(config)` returning a `Compressor`, and optionally `plan_problems(config, model, widths)`,
`job_problems(config, job)`, `data_problems(config, data)`, `layout_problems(config, job, layout)`, and on the order of
steps `leaves(config)`, `bars(config)` (see `spec.steps`) and `follow_problems(config, before, job)`, and on the machine
that compresses `machine_problems(config, here)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from orchestrator.errors import ExportError
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import ClusterSection, JobSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.compress.recover import Course, Recovered
    from orchestrator.data.dataset import Dataset

MODULE, EXPORTED, ARTIFACT = "module", "exported", "artifact"


@dataclass(frozen=True)
class State:
    """A model between two steps. `kind` is one of module, exported, artifact.

    `model` is the newest model in memory: the state itself, or what the files were made of. `masks` names weights that
    stay zero (True: kept), `codes` weights that share values (int64, the number of a weight's value in its layer; -1:
    not shared). `files` lie in `folder` and are all that is needed to run. `weights` says of mixed precision how many
    weights are kept in so many bits. `target`: what files are run on to be judged, `cpu` or `cuda`.
    """

    kind: str
    model: nn.Module
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None
    files: tuple[str, ...] = ()
    format: str = ""
    scheme: str = "fp32"
    weights: Mapping[int, int] = field(default_factory=dict)
    target: str = "cpu"

    def file(self) -> Path:
        """Return the one file of an exported graph or artifact."""
        if self.folder is None or not self.files:
            raise ExportError("this state is a model in memory, which has no file")
        return self.folder / self.files[0]


def require_unbarred(use: str, bars: Mapping[str, str], state: State) -> None:
    """Raise ExportError where a step cannot work on what those before have left (see `spec.steps`)."""
    for mark, why in bars.items():
        if getattr(state, mark):
            raise ExportError(f"{use} after {mark}: {why}", hint=f"put {use} before them")


class Launch(Protocol):
    """Trains a model in place on the ranks of a layout, and says how it went. Handed in by who knows clusters.

    Raises TrainError when it fails for good.
    """

    def __call__(self, model: nn.Module, context: Context, course: Course, layout: Layout) -> Recovered: ...


@dataclass(frozen=True)
class Context:
    """What a step may look at beside the state. `teacher` is the model before any step; `folder` is the step's own.

    `job` and `plan` are for one process; `layout` and `cluster` are those of the job as it was trained. `launch` finds
    the ranks that train; None: processes of this machine.
    """

    job: JobSpec
    plan: Plan
    data: Dataset
    teacher: nn.Module
    folder: Path
    dtype: str = "float32"
    layout: Layout = field(default_factory=Layout)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    launch: Launch | None = None

    def calibration(self) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets) that steps may choose ranges and importance by, never those of the test split."""
        import torch

        from orchestrator.export.score import cast_inputs

        section = self.job.compress.calibration
        split = self.data.splits.get(section.split)
        if split is None or len(split) == 0:
            raise ExportError(
                f"data {self.data.name} has no samples in split '{section.split}' to calibrate on",
                hint="set compress.calibration.split=train",
            )
        inputs, targets = split.batch(torch.arange(min(section.samples, len(split))))
        return cast_inputs(inputs, self.dtype).contiguous(), targets


@dataclass(frozen=True)
class Change:
    """What a step made: the next state, figures for the report, and notes in words that the user must see.

    `read`: digests, by option, of what the step read from elsewhere, for the lineage.
    """

    state: State
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    read: Mapping[str, str] = field(default_factory=dict)


class Compressor(Protocol):
    """One step, built from its `Config`. It never changes the model it is given: it returns another."""

    def apply(self, state: State, context: Context) -> Change:
        """Return the next state. Raises ExportError when it cannot be made, NotAbleError when a package is missing."""


@runtime_checkable
class Trains(Protocol):
    """A step that trains, too: `compress.control` gives the model as it was the same training."""

    def control(self, state: State, context: Context) -> Change | None:
        """Return the state after that training alone; None when this one trains nothing."""


@runtime_checkable
class Demands(Protocol):
    """A step that this machine may not be able to carry out, which is asked before any step begins."""

    def require_able(self) -> None:
        """Raise NotAbleError with the reason where the step would fail for it."""
