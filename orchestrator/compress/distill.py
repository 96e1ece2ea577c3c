"""`use: distill`: trains the compressed model towards a teacher's answers: the model before, or any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from orchestrator.compress.base import MODULE, Change, Context, State
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import Distill as Lesson
from orchestrator.compress.finetune import feature_problems, layout_problems, mixup_problems, train
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.plan.shapes import DataShape
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]
BEFORE = "input"
__all__ = ["Config", "build", "data_problems", "flow", "job_problems", "layout_problems", "leaves"]


@dataclass(frozen=True)
class Config:
    """As `finetune` with `distill`, and the teacher can be chosen.

    `teacher` is `input`, the trained model as it was before the first step, or a folder: that of a run, or one that
    `export` wrote (program, safetensors). It must have this model's inputs and classes.
    """

    teacher: str = BEFORE
    epochs: float = 10.0
    lr: float | None = None
    batch_size: int | None = None
    temperature: float = 4.0
    weight: float = 0.7
    mixup: bool = False
    features: Literal["auto"] | tuple[str, ...] = ()
    features_weight: float = 1.0
    replicate: int | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        self.lesson()
        self.training()

    def lesson(self) -> Lesson:
        """Return what is taught, whoever teaches."""
        return Lesson(self.temperature, self.weight, self.mixup, self.features, self.features_weight)

    def training(self) -> FinetuneConfig:
        """Return what it has in common with `finetune`."""
        return FinetuneConfig(self.epochs, self.lr, self.batch_size, replicate=self.replicate, shard=self.shard)


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def data_problems(config: Config, data: DataShape) -> list[Complaint]:
    """Return why the data cannot be used as asked, as (key, message, hint)."""
    return mixup_problems(config, data)


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return why the teacher cannot teach this job's model, as (key, message, hint); its weights are not read."""
    found = feature_problems(config, job)
    if config.teacher == BEFORE:
        return found
    from orchestrator.compress.teacher import teacher_job
    from orchestrator.plan.compress import model_sides

    try:
        other = teacher_job(config.teacher)
    except OrchestratorError as error:
        return [*found, ("teacher", error.message, error.hint)]
    mine, theirs = model_sides(job), model_sides(other)
    if mine is None or theirs is None or mine == theirs:
        return found
    message = f"the teacher maps {theirs[0]} to {theirs[1]}, the model {mine[0]} to {mine[1]}"
    return [*found, ("teacher", message, "a teacher must have the same inputs and classes")]


def leaves(config: Config) -> tuple[str, ...]:
    """Return what later steps must respect, beside what was there and stays."""
    return ()


def build(config: Config) -> Distil:
    """Return the step."""
    return Distil(config)


class Distil:
    """Trains on the job's data ranks; masks and codebooks stay exact."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the model after training. Raises ExportError when the teacher cannot be read or answers otherwise."""
        from orchestrator.compress.teacher import load_teacher
        from orchestrator.export.weights import digest_weights, state_tensors

        asked = self.config
        teacher = context.teacher if asked.teacher == BEFORE else load_teacher(asked.teacher)
        change = train(state, context, asked.training(), asked.lesson().lessons(teacher))
        return replace(change, read={"teacher": digest_weights(state_tensors(teacher))})

    def control(self, state: State, context: Context) -> Change:
        """Return the same training of a model that nothing was done to."""
        return self.apply(state, context)
