"""`nets.json`, `ranking.json`, `took.json`: which nets a supernet holds, what each scored, how long all attempts took.

Torch-free; driver and worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.base import Use

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Nets:
    """What the worker is asked: the `model` sections of the nets, the smallest first, and how they are trained.

    `num_random`: nets drawn anew in every step. `distill`: the parts learn from the wide net's answers, else from the
    targets. `recalibrate`: training batches from which a part's batch norms take their figures before it is scored.
    """

    models: tuple[Mapping[str, Any], ...]
    num_random: int = 2
    distill: bool = True
    recalibrate: int = 16

    @property
    def uses(self) -> list[Use]:
        """The nets as `model` sections."""
        return [Use.model_validate(dict(each)) for each in self.models]


@dataclass(frozen=True)
class Ranking:
    """What came of it: the metrics of every net in the order of `Nets.models`, and the file of the shared weights.

    On disk the file is named by itself, as it lies beside the page; in here by its whole path.
    """

    scores: tuple[Mapping[str, float], ...]
    file: str
    sha256: str
    whole: Mapping[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    rank_s: float = 0.0


def nets_path(run: RunDir) -> Path:
    """Return where the question lies."""
    return run.path / "nets.json"


def ranking_path(run: RunDir) -> Path:
    """Return where the answer lies; there once all nets are scored."""
    return run.path / "ranking.json"


def write_nets(run: RunDir, nets: Nets) -> None:
    """Write the question."""
    write_json(nets_path(run), asdict(nets))


def read_nets(run: RunDir) -> Nets:
    """Return the question. Raises CheckpointError when it cannot be read."""
    content = _read(nets_path(run))
    return Nets(**{**content, "models": tuple(content["models"])})


def write_ranking(run: RunDir, ranking: Ranking) -> None:
    """Write the answer, whole or not at all."""
    write_json(ranking_path(run), {**asdict(ranking), "file": Path(ranking.file).name})


def read_ranking(run: RunDir, num_nets: int) -> Ranking | None:
    """Return the answer; None when there is none for so many nets, or the weights are gone."""
    if not ranking_path(run).is_file():
        return None
    content = _read(ranking_path(run))
    file = run.path / Path(content["file"]).name  # older pages hold where it lay when they were written
    found = Ranking(**{**content, "scores": tuple(content["scores"]), "file": str(file)})
    return found if len(found.scores) == num_nets and Path(found.file).is_file() else None


def supernet_folders(sweep: RunDir) -> list[RunDir]:
    """Return where the supernets of a sweep lie, whatever became of them."""
    return [RunDir(path) for path in sorted(sweep.trials.glob("supernet-*"))]


def supernet_seconds(sweep: RunDir) -> float:
    """Return the seconds of a worker that the supernets of a sweep took, ranked or not; 0.0: it has none."""
    return sum(taken_s(each) for each in supernet_folders(sweep))


def taken_s(run: RunDir) -> float:
    """Return the seconds that all attempts of a supernet took. Of one made before they were noted, what it tells."""
    if (path := _took_path(run)).is_file():
        return float(_read(path)["seconds"])
    if not ranking_path(run).is_file():
        return 0.0
    content = _read(ranking_path(run))
    return float(content["train_s"]) + float(content["rank_s"])


def write_taken(run: RunDir, seconds: float) -> None:
    """Note what all attempts took by now; whole or not at all."""
    write_json(_took_path(run), {"seconds": round(seconds, 3)})


def _took_path(run: RunDir) -> Path:
    return run.path / "took.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="delete its folder: it is made again") from error
    return content
