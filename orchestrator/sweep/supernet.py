"""`use: supernet`: one wide net is trained once, its parts are ranked as they are, the best are fine-tuned as trials.

Weight sharing after slimmable networks (Yu et al. 2019), Once-for-All (Cai et al. 2020) and BigNAS (Yu et al. 2020);
how far the ranking can be believed is measured against nets trained alone (Yu et al. 2020, "Evaluating the search
phase of neural architecture search"), when the user pays for some (`control`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from orchestrator import plugins
from orchestrator.cluster.events import Event
from orchestrator.plan.build import build_plan
from orchestrator.plan.cut import widest_of
from orchestrator.spec.base import Use
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import CompressSection, JobSpec, ParallelSection
from orchestrator.supernet.page import Nets, Ranking
from orchestrator.sweep.correlation import CONTROL
from orchestrator.sweep.feasible import Feasible
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.order import best_first, evenly, spread
from orchestrator.sweep.point import Point, plain_copy, point_hash
from orchestrator.sweep.search import About, Outcome, SearchTask
from orchestrator.sweep.space import Space

ALONE = "train.init"
"""A point that says `null` here is a net to be trained from drawn weights."""
_TRIES_EACH = 50


class Supernet:
    """Trains one wide net whose parts share its weights, ranks the parts without training, fine-tunes the best."""

    finite = True

    @dataclass(frozen=True)
    class Config:
        """`epochs` or `steps`: training of the wide net (absent: the job's); `random`: nets between the widest and the
        smallest in every step; `distill`: they learn from the widest one's answers; `population`: nets to rank,
        drawn where the space has more; `finetune`: epochs of every trial, `lr` their rate; `control`: nets that are
        also trained alone, as the job says.
        """

        epochs: float | None = None
        steps: int | None = None
        random: int = 2
        distill: bool = True
        population: int = 256
        finetune: float = 2.0
        lr: float | None = None
        control: int = 0

        def __post_init__(self) -> None:
            if self.epochs is not None and self.steps is not None:
                raise ValueError("give epochs or steps, not both")
            for name in ("epochs", "steps", "finetune", "lr"):
                if getattr(self, name) is not None and getattr(self, name) <= 0:
                    raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
            if self.random < 0 or self.control < 0 or self.population < 1:
                raise ValueError("random and control must be at least 0, population at least 1")

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> Supernet:
        """Return the searcher."""
        return cls(config, task)

    def __init__(self, config: Config, task: SearchTask) -> None:
        self.config, self._task = config, task
        self._whole: Use | None = None
        self._ranking: Ranking | None = None
        self._name = ""
        self.exhausted = "every net that was ranked was fine-tuned"
        self._scores: dict[str, Mapping[str, float]] = {}
        self._points: Iterator[Point] = iter(())

    def prepare(self, workshop: Any) -> None:
        """Train the wide net and have its parts ranked, in the sweep's own processes; see `supernet_run`."""
        from orchestrator.sweep.supernet_run import train_supernet

        found, why = population(self._task, self.config.population, workshop)
        if not found:
            self.exhausted = f"no net of the space is feasible, so none was trained (the first one: {why})"
            workshop.on_event(Event("supernet", self.exhausted))
            return
        found = _smallest_first(found)
        models = [net.job.model for _, net in found]
        self._whole = whole_of(models)
        job = supernet_job(workshop.job, self._whole, self.config)
        wide = Feasible(job, build_plan(job, workshop.available))
        nets = Nets(tuple(model.model_dump(mode="json") for model in models), self.config.random, self.config.distill)
        self._name = f"supernet-{_digest(job, nets)}"
        self._ranking = train_supernet(workshop, self._name, wide, nets)
        if self._ranking is None:
            self.exhausted = "the supernet was not trained to its end, so no net is ranked"
        else:
            self._adopt([point for point, _ in found], [net for _, net in found], self._ranking)

    def ask(self) -> Point | None:
        """Return the next best point, or one to be trained alone, in turns while there are both."""
        return next(self._points, None)

    def about(self, point: Point) -> About:
        """Return where the trial's weights come from, how long it is fine-tuned, and what the ranking expects of it."""
        net = {path: value for path, value in point.items() if path != ALONE}
        predicted = self._scores.get(point_hash(net), {})
        if ALONE in point:
            return About(CONTROL, {}, predicted, self._name if predicted else "")
        if self._ranking is None or self._whole is None or not predicted:
            return About()
        init = {"file": self._ranking.file, "sha256": self._ranking.sha256, "cut_from": _short(self._whole)}
        settings: dict[str, Any] = {ALONE: init, "train.epochs": self.config.finetune}
        return About(
            "", settings | ({"optim.lr": self.config.lr} if self.config.lr is not None else {}), predicted, self._name
        )

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Learn nothing: the ranking stands."""

    def _adopt(self, points: list[Point], nets: list[Feasible], ranking: Ranking) -> None:
        self._scores = {point_hash(point): score for point, score in zip(points, ranking.scores, strict=True)}
        values = [{**score, **derived(net)} for score, net in zip(ranking.scores, nets, strict=True)]
        known = [each for each in self._task.objectives if all(each.name in value for value in values)]
        order = best_first([[each.score(value[each.name]) for each in known] for value in values])
        alone = control_places(values, known, self.config.control)
        best = iter([points[at] for at in order])
        self._points = _in_turns(best, iter([{**points[at], ALONE: None} for at in alone]))


def population(task: SearchTask, most: int, workshop: Any) -> tuple[list[tuple[Point, Feasible]], str]:
    """Return the feasible points to rank: all of the space, or `most` drawn ones, and the user's start points.

    Beside them why the first infeasible one is that, "" when none is.
    """
    found: dict[str, tuple[Point, Feasible]] = {}
    why = ""
    for point in [*workshop.starts, *_candidates(task.space, most, task.seed)]:
        if len(found) >= most + len(workshop.starts):
            break
        digest = point_hash(point)
        if digest in found:
            continue
        judged = workshop.judge(point)
        if isinstance(judged, Feasible):
            found[digest] = point, judged
        else:
            why = why or judged.reason
    return list(found.values()), why


def _candidates(space: Space, most: int, seed: int) -> Iterator[Point]:
    size = space.size(most + 1)
    if size is not None and size <= most:
        yield from space.grid()
        return
    numbers = random.Random(f"{seed}/population")
    for _ in range(_TRIES_EACH * most):
        yield space.from_units([numbers.random() for _ in space.params])


def _smallest_first(found: list[tuple[Point, Feasible]]) -> list[tuple[Point, Feasible]]:
    return sorted(found, key=lambda each: (each[1].plan.num_params or 0, point_hash(each[0])))


def whole_of(models: list[Use]) -> Use:
    """Return the `model` section of the smallest net that all of these are parts of, every key written out."""
    return Use.model_validate({"use": models[0].use, **plain_copy(asdict(widest_of(models)))})


def _short(whole: Use) -> dict[str, Any]:
    """Return a `model` section without the keys that have their defaults."""
    config = plugins.light_config("models", whole.use)
    usual = {} if config is None else {field.name: plain_copy(field.default) for field in fields(config)}
    return {"use": whole.use, **{key: value for key, value in whole.options.items() if usual.get(key) != value}}


def supernet_job(job: JobSpec, whole: Use, config: Supernet.Config) -> JobSpec:
    """Return the job of the wide net: data, optimiser, schedule, seed and precision of the swept job, in one process.

    What would change only speed or memory is off, since steps are other than usual; nothing stops it early.
    """
    length = {} if config.epochs is None and config.steps is None else {"epochs": config.epochs, "steps": config.steps}
    train = job.train.model_copy(
        update={
            **length,
            "compile": False, "float8": "none", "activation_checkpoint": "none", "loss_chunks": 1,
            "callbacks": (), "profile": False, "init": None,
            "monitor": job.train.monitor.model_copy(update={"patience": None}),
        }
    )  # fmt: skip
    return job.model_copy(
        update={
            "model": whole, "train": train, "parallel": ParallelSection(replicate=1), "sweep": None,
            "compress": CompressSection(), "export": (),
        }
    )  # fmt: skip


def derived(net: Feasible) -> dict[str, float]:
    """Return what the plan says of a net that may be an objective."""
    found = {"model/params": net.plan.num_params, "model/flops": net.plan.flops_per_sample}
    return {name: float(value) for name, value in found.items() if value is not None}


def control_places(values: list[dict[str, float]], known: list[Objective], wanted: int) -> list[int]:
    """Return the places of nets to train alone: evenly from the best to the worst by the first measured objective.

    The best alone would not say whether the ranking can tell good from bad. Both ends come first, then what lies
    between, so that those of a sweep that ends early span the ranking, too.
    """
    first = next(each for each in known if each.name.startswith("val/"))
    order = sorted(range(len(values)), key=lambda at: (-first.score(values[at][first.name]), at))
    places = evenly(len(order), wanted)
    return [order[places[at]] for at in spread(len(places))]


def _in_turns(one: Iterator[Point], other: Iterator[Point]) -> Iterator[Point]:
    for point in one:
        yield point
        yield from (each for each in [next(other, None)] if each is not None)
    yield from other


def _digest(job: JobSpec, nets: Nets) -> str:
    """Return 8 hex digits that name a supernet: what decides its weights, and which nets are scored."""
    text = json.dumps([job_digest(job), asdict(nets)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
