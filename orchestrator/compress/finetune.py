"""`use: finetune`: trains the compressed model on the job's data, if wished with the model before as its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from orchestrator import plugins
from orchestrator.compress.base import MODULE, Change, Context, State
from orchestrator.errors import PlanError
from orchestrator.plan.layout import AXES, Layout

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.compress.recover import Lessons
    from orchestrator.plan.shapes import DataShape
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]


@dataclass(frozen=True)
class Distill:
    """The teacher is the trained model as it was before the first step.

    `weight` of the loss pulls towards its answers, softened by `temperature` (classes; for answers that are numbers it
    means nothing); the rest is the job's own loss. `mixup`
    asks it about blends of two samples each (inputs that are numbers, weight 1: blends have no target of their own).
    `features`: what these layers find (paths, or `auto`: all that both have) is drawn to what the teacher's find,
    through a map that is learnt where widths differ; their distance counts `features_weight`.
    """

    temperature: float = 4.0
    weight: float = 0.7
    mixup: bool = False
    features: Literal["auto"] | tuple[str, ...] = ()
    features_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.weight <= 1:
            raise ValueError("temperature must be above 0, weight above 0 and at most 1")
        if self.mixup and self.weight != 1:
            raise ValueError("mixup needs weight 1: blends of two samples have no target but the teacher's answer")
        if self.features_weight <= 0:
            raise ValueError("features_weight must be above 0 (without `features` nothing inner counts)")
        if not self.features and self.features_weight != 1:
            raise ValueError("features_weight means nothing without `features`: leave it out")

    def lessons(self, teacher: nn.Module) -> Lessons:
        """Return what this teacher is to teach."""
        from orchestrator.compress.recover import Lessons

        return Lessons(teacher, self.temperature, self.weight, self.mixup, self.features, self.features_weight)


class Ranked(Protocol):
    """A step's config that says on how many ranks it trains."""

    @property
    def replicate(self) -> int | None: ...

    @property
    def shard(self) -> int | None: ...


class Featuring(Protocol):
    """A config that says which inner layers teach."""

    @property
    def features(self) -> Literal["auto"] | tuple[str, ...]: ...


class Mixing(Protocol):
    """A config that says whether samples are blended."""

    @property
    def mixup(self) -> bool: ...


class Batched(Ranked, Protocol):
    """One that may have a batch size of its own."""

    @property
    def batch_size(self) -> int | None: ...


class Training(Batched, Protocol):
    """A step's config that says how it trains."""

    @property
    def epochs(self) -> float: ...

    @property
    def lr(self) -> float | None: ...


@dataclass(frozen=True)
class Config:
    """Passes over the training split, with the job's optimiser; the rate falls to 0 in half a cosine wave.

    `replicate` and `shard` are the ranks, as in `parallel`; absent, the job's. The result is the same on any number.
    """

    epochs: float = 10.0
    lr: float | None = None
    batch_size: int | None = None
    distill: Distill | None = None
    replicate: int | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        if self.epochs <= 0 or (self.lr is not None and self.lr <= 0):
            raise ValueError("epochs and lr must be above 0")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        if any(degree is not None and degree < 1 for degree in (self.replicate, self.shard)):
            raise ValueError("replicate and shard must be at least 1")


def training_layout(asked: Ranked, job_layout: Layout) -> Layout:
    """Return the ranks that a step trains on: its own, else the job's data ranks.

    Raises PlanError when the job has other axes and the step does not say on how many data ranks it shall run: a
    compressed model no longer has the shapes that those axes cut it by.
    """
    if asked.replicate is not None or asked.shard is not None:
        return Layout(replicate=asked.replicate or 1, shard=asked.shard or 1)
    others = [axis for axis in (*AXES, "expert") if axis not in ("replicate", "shard")]
    foreign = [f"{axis}={getattr(job_layout, axis)}" for axis in others if getattr(job_layout, axis) > 1]
    if foreign:
        raise PlanError(
            f"training after compression runs on data ranks (replicate, shard); the job has {', '.join(foreign)}, "
            f"which cuts the model by shapes that it no longer has",
            hint="set the step's `replicate: 1`, or as many data ranks as you like: the result is the same",
        )
    return Layout(replicate=job_layout.replicate, shard=job_layout.shard)


def layout_problems(config: Batched, job: JobSpec, layout: Layout) -> list[Complaint]:
    """Return why a step cannot train under the job's layout, as (key, message, hint)."""
    return rank_problems(config, config.batch_size or job.train.batch_size, layout, key="batch_size")


def rank_problems(config: Ranked, size: int, layout: Layout, *, key: str = "replicate") -> list[Complaint]:
    """Return why batches of `size` samples cannot be trained on the ranks that a step asks for; `key` is to blame."""
    try:
        found = training_layout(config, layout)
    except PlanError as error:
        return [("replicate", error.message, error.hint)]
    if size % found.num_data_ranks:
        message = f"a batch of {size} does not divide over {found.num_data_ranks} data ranks"
        return [(key, message, f"make it a multiple of {found.num_data_ranks}, or set the step's `replicate`")]
    return []


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return which features the model cannot have, as (key, message, hint)."""
    return [(f"distill.{key}", message, hint) for key, message, hint in feature_problems(config.distill, job)]


def feature_problems(distill: Featuring | None, job: JobSpec) -> list[Complaint]:
    """Return which features a model that names its layers does not have, as (key, message, hint)."""
    light = plugins.light_config("models", job.model.use) if distill is not None and distill.features else None
    model: Any = plugins.load("models", job.model.use) if light is not None else None
    if distill is None or distill.features == "auto" or not hasattr(model, "layer_names"):
        return []
    names = [f"layers.{name}" for name in model.layer_names(plugins.build_config(model.Config, job.model.options))]
    wrong = [each for each in distill.features if not any(f"{each}.".startswith(f"{name}.") for name in names)]
    if not wrong:
        return []
    return [("features", f"model {job.model.use} has no layer '{wrong[0]}'", f"it has: {', '.join(names)}")]


def data_problems(config: Config, data: DataShape) -> list[Complaint]:
    """Return why the data cannot be used as asked, as (key, message, hint)."""
    return [(f"distill.{key}", message, hint) for key, message, hint in mixup_problems(config.distill, data)]


def mixup_problems(distill: Mixing | None, data: DataShape) -> list[Complaint]:
    """Return why samples cannot be blended, as (key, message, hint)."""
    if distill is None or not distill.mixup or data.input_dtype.startswith("float"):
        return []
    return [("mixup", f"inputs of type {data.input_dtype} cannot be blended", "leave mixup out")]


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def leaves(config: Config) -> tuple[str, ...]:
    """Return what later steps must respect, beside what was there and stays."""
    return ()


def build(config: Config) -> Finetune:
    """Return the step."""
    return Finetune(config)


class Finetune:
    """Trains on the job's data ranks; masks stay exact."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the model after training."""
        return train(state, context, self.config, lessons_of(self.config.distill, context))

    def control(self, state: State, context: Context) -> Change:
        """Return the same training of a model that nothing was done to."""
        return self.apply(state, context)


def lessons_of(distill: Distill | None, context: Context) -> Lessons | None:
    """Return what the model as it was teaches; None when it is not asked to."""
    return distill.lessons(context.teacher) if distill else None


def train(
    state: State, context: Context, asked: Training, lessons: Lessons | None, *, steps: int | None = None
) -> Change:
    """Return the state after training; what the steps before left exact stays exact."""
    from orchestrator.compress.recover import recover
    from orchestrator.export.weights import plain_copy

    model, layout = plain_copy(state.model), training_layout(asked, context.layout)
    done = recover(
        model,
        context,
        epochs=asked.epochs,
        steps=steps,
        lr=asked.lr,
        batch_size=asked.batch_size,
        lessons=lessons,
        masks=state.masks,
        codes=state.codes,
        layout=layout,
    )
    after = State(MODULE, plain_copy(model), masks=state.masks, codes=state.codes)
    return Change(after, {"steps": done.steps, "final_loss": done.loss, "ranks": layout.world_size})
