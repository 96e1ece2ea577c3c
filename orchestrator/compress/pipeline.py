"""Runs the steps of a job on a trained model and has what comes out checked. Called by `stage`."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import __version__, plugins
from orchestrator.compress import artifact
from orchestrator.compress.base import MODULE, Change, Compressor, Context, Demands, Launch, State, Trains
from orchestrator.compress.manifest import Link, Page, entry_of, read_page, write_page
from orchestrator.compress.verify import check_artifact, time_artifact, weigh_processes
from orchestrator.errors import ExportError, OrchestratorError
from orchestrator.export.manifest import json_digest
from orchestrator.export.score import score
from orchestrator.export.weights import digest_weights, plain_copy, state_tensors
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Plan
from orchestrator.spec.base import Use
from orchestrator.spec.job import ClusterSection, JobSpec

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.data.dataset import Dataset

_UNCHANGED = 1.02
_SAME_SIZE = ("finetune", "distill", "share", "export")  # masks and codebooks are for `pack` to make use of


@dataclass(frozen=True)
class Trained:
    """A trained model in memory, and all that compressing and judging it take. `split` is the final one.

    `job` and `plan` are for one process; `layout`, `cluster` and `accumulate` are those of the job as it was trained,
    `launch` finds ranks there (None: on this machine).
    """

    job: JobSpec
    plan: Plan
    data: Dataset
    model: nn.Module
    checkpoint: str
    step: int
    split: str
    dtype: str
    layout: Layout = field(default_factory=Layout)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    launch: Launch | None = None
    accumulate: int = 1

    def named(self) -> JobSpec:
        """Return the job by what decided its result: what an artifact says of it, and the digest that names it."""
        train = self.job.train.model_copy(update={"accumulate": self.accumulate})
        return self.job.model_copy(update={"train": train})


@dataclass(frozen=True)
class StepReport:
    """What one step did. `metrics` are of the validation split; `size_bytes` is that of a real file."""

    number: int
    use: str
    seconds: float
    size_bytes: int
    params: int
    metrics: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""

    @property
    def name(self) -> str:
        """Return `2_finetune`."""
        return f"{self.number}_{self.use}"


@dataclass(frozen=True)
class Outcome:
    """What became of a compression: the checked artifact, or why there is none."""

    folder: Path
    steps: tuple[StepReport, ...]
    baseline: StepReport
    checked: Mapping[str, Any] = field(default_factory=dict)
    timing: Sequence[Mapping[str, Any]] = ()
    processes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    control: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    hint: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the artifact holds."""
        return not self.error


def compress(
    trained: Trained, folder: Path, say: Callable[[str], None] = lambda text: None, *, timed: bool = True
) -> Outcome:
    """Run the job's steps and judge the result; files lie in `folder`, the artifact in `folder/artifact`.

    A step or a check that fails ends it, and the outcome says why. Not `timed`: checked only, somebody takes the time
    later. Raises JobFileError when there are no steps.
    """
    begun = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = _Run(trained, folder, say)
    baseline = run.report(0, "trained", State(MODULE, trained.model), 0.0)
    notes = artifact.write_reference(trained, run.context(0, "reference"), folder)
    error: OrchestratorError | None = None
    found: dict[str, Any] = {}
    try:
        state = run.steps(baseline)
        found = _judge(trained, state, run, folder, say, timed=timed)
    except OrchestratorError as failure:
        error = failure
    return Outcome(
        folder,
        tuple(run.reports),
        baseline,
        **found,
        error=error.message if error else "",
        hint=error.hint if error else "",
        seconds=time.perf_counter() - begun,
        notes=(*notes, *run.notes, *(report.warning for report in run.reports if report.warning)),
    )


class _Run:
    """The steps so far: reports and lineage."""

    def __init__(self, trained: Trained, folder: Path, say: Callable[[str], None]) -> None:
        self._trained, self._folder, self._say = trained, folder, say
        self.reports: list[StepReport] = []
        self.links: list[Link] = []
        self.notes: list[str] = []

    def context(self, number: int, use: str) -> Context:
        """Return what a step may look at."""
        trained = self._trained
        place = self._folder / (f"{number}_{use}" if number else use)
        return Context(
            trained.job,
            trained.plan,
            trained.data,
            trained.model,
            place,
            trained.dtype,
            trained.layout,
            trained.cluster,
            trained.launch,
        )

    def steps(self, baseline: StepReport) -> State:
        """Run every step; return the last state."""
        state, size = State(MODULE, self._trained.model), baseline.size_bytes
        asked = self._trained.job.compress.steps
        steps: list[Compressor] = [plugins.build("compressors", use.use, use.options) for use in asked]
        for step in steps:
            if isinstance(step, Demands):
                step.require_able()
        for number, (use, step) in enumerate(zip(asked, steps, strict=True), start=1):
            begun, before = time.perf_counter(), digest_of(state)
            short = use.use.rpartition(":")[2].rpartition(".")[2]
            change: Change = step.apply(state, self.context(number, short))
            state = change.state
            self.links.append(self._link(use, before, digest_of(state), change.read))
            report = self.report(number, short, state, time.perf_counter() - begun, change.facts)
            report = replace(report, warning=_idle(report, size, before == digest_of(state)))
            self.reports.append(report)
            self.notes += [f"{report.name}: {note}" for note in change.notes]
            size = report.size_bytes
            self._say(f"{report.name}: {report.size_bytes:,} bytes, {report.seconds:.1f} s")
        return state

    def report(
        self, number: int, use: str, state: State, seconds: float, facts: Mapping[str, Any] | None = None
    ) -> StepReport:
        """Measure a state: real bytes, parameters, quality on the validation split."""
        trained = self._trained
        params = sum(parameter.numel() for parameter in state.model.parameters())
        split = "val" if trained.data.splits.get("val") else trained.split
        metrics = score(artifact.as_function(state), trained.job, trained.data, split, trained.dtype).named()
        size = artifact.size_of(state)
        return StepReport(number, use, seconds, size, params, metrics, dict(facts or {}))

    def _link(self, use: Use, parent: str, digest: str, read: Mapping[str, str]) -> Link:
        return Link(use.use, use.options, _code_of(use.use), self._trained.data.digest, parent, digest, dict(read))


def digest_of(state: State) -> str:
    """Return the digest that names a state: of its weights and masks, or of its files."""
    if state.kind == MODULE:
        beside = [digest_weights(part) for part in (state.masks, state.codes) if part]
        return json_digest([digest_weights(state_tensors(state.model)), *beside])
    return json_digest([asdict(entry_of((state.folder or Path()) / name)) for name in state.files])


def _code_of(use: str) -> str:
    """Return a digest of a step's source, so that a lineage names the code too.

    Of a built-in step, of this whole package: helpers are shared. Of a plug-in, of its own file.
    """
    plugin = plugins.load("compressors", use)
    module = str(getattr(plugin, "__module__", None) or getattr(plugin, "__name__", ""))
    try:
        own = module.startswith(f"{__name__.rpartition('.')[0]}.")
        source = _sources(Path(__file__).parent) if own else inspect.getsource(inspect.getmodule(plugin) or plugin)
    except (OSError, TypeError):
        source = use
    return hashlib.sha256(f"{__version__}\n{use}\n{source}".encode()).hexdigest()[:16]


@cache
def _sources(folder: Path) -> str:
    """Return all sources below a folder, each after its path."""
    files = sorted(folder.rglob("*.py"))
    return "\n".join(f"{file.relative_to(folder)}\n{file.read_text(encoding='utf-8')}" for file in files)


def _idle(report: StepReport, before_bytes: int, same: bool) -> str:
    """Return the warning of a step that changed nothing, or that was to make the model smaller and did not."""
    if same:
        return f"{report.name} CHANGED NOTHING: not one weight differs"
    shrinking = report.use not in _SAME_SIZE and not report.facts.get("sparsity")
    if shrinking and before_bytes < report.size_bytes * _UNCHANGED:
        ratio = f"size ratio {before_bytes / report.size_bytes:.2f}"
        return (
            f"{report.name} MADE NOTHING SMALLER: {before_bytes:,} bytes before, {report.size_bytes:,} after, {ratio}"
        )
    return ""


def _judge(
    trained: Trained, state: State, run: _Run, folder: Path, say: Callable[[str], None], *, timed: bool
) -> dict[str, Any]:
    page = artifact.write_artifact(trained, state, tuple(run.links), folder)
    say("checking the file in a process of its own")
    place = folder / "artifact"
    found: dict[str, Any] = {"checked": check_artifact(place)}
    if timed:
        say("timing it beside the model as it was")
        found["timing"], found["processes"] = time_artifact(place), weigh_processes(place)
    if trained.job.compress.control:
        found["control"] = _control(trained, run)
    _keep(place, page, found)
    return found


def _control(trained: Trained, run: _Run) -> dict[str, float]:
    """Give the model as it was the same finetuning and evaluate it: what the budget alone brings."""
    state = State(MODULE, plain_copy(trained.model))
    for use in trained.job.compress.steps:
        step: Compressor = plugins.build("compressors", use.use, use.options)
        if isinstance(step, Trains):
            change = step.control(state, run.context(0, "control"))
            state = change.state if change is not None else state
    return score(artifact.as_function(state), trained.job, trained.data, trained.split, trained.dtype).named()


def _keep(place: Path, page: Page, found: Mapping[str, Any]) -> None:
    write_page(place, replace(page, checked=dict(found)))
    if read_page(place).checked is None:
        raise ExportError(f"{place} could not be marked as checked")
