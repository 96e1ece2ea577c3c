"""What compression makes of four models: file, speed, quality, memory, each measured from the file as a job does.

`python -m tests.benchmarks compression` runs all, `python -m tests.benchmarks.compression digits archive` some of
digits, archive, resnet18, text, speed, openvino, formats (those that are installed) and gpu. The models are trained
here in one process; ratios are those of `compress.timing`: contenders in turn, an A/A pair, no figure where it is too
noisy. The ResNet-18 and the large language models are trained for a few steps only: they stand for their sizes, not for
what they know.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.compress.formats import FORMATS, missing
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.spec.base import Use
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_job, load_spec
from tests.compress.making import make_trained

JOBS = Path(__file__).parents[2] / "jobs"
SEEDS = (0, 1, 2)
PRUNE, EXPORT = {"use": "prune", "ratio": 0.5}, {"use": "export"}
INT8 = {"use": "quantise", "scheme": "int8-static"}
OPENVINO = {"use": "export", "format": "openvino"}
INT8_WEIGHT = {"use": "quantise", "scheme": "int8-weight"}
DYNAMIC = {"use": "quantise", "scheme": "int8-dynamic"}
INT4 = {"use": "quantise", "scheme": "int4-weight", "group": 64}
INT4_TRAINED = {**INT4, "qat": {"epochs": 0.5, "lr": 3e-4}}
RESNET18 = {
    "use": "resnet",
    "in_channels": 3,
    "image_size": 32,
    "channels": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
}
IMAGES = {"use": "synthetic", "kind": "images", "channels": 3, "image_size": 32, "classes": 10, "num_samples": 640}
SMALL = {"use": "transformer", "vocab": 256, "seq_len": 64, "dim": 128, "layers": 4, "heads": 4}
MEDIUM = {"use": "transformer", "vocab": 256, "seq_len": 64, "dim": 512, "layers": 3, "heads": 8}
WIDE = {"use": "transformer", "vocab": 256, "seq_len": 64, "dim": 1024, "layers": 4, "heads": 16}
LARGE = {"use": "transformer", "vocab": 256, "seq_len": 64, "dim": 512, "layers": 6, "heads": 8}


def run(names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return (what, figure) of the named parts, or of all."""
    rows: list[tuple[str, str]] = []
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name in names or _PARTS:
            rows += _PARTS[name](place)
    return rows


def _digits(place: Path) -> list[tuple[str, str]]:
    """jobs/compress_digits.yaml over three seeds."""
    return _over_seeds("digits ResNet, pruned half, taught, int8", "compress_digits.yaml", place, speed=True)


def _archive(place: Path) -> list[tuple[str, str]]:
    """jobs/archive_digits.yaml over three seeds."""
    return _over_seeds("digits ResNet, archive", "archive_digits.yaml", place, speed=False)


def _over_seeds(what: str, file: str, place: Path, *, speed: bool) -> list[tuple[str, str]]:
    outcomes = []
    for seed in SEEDS:
        job = load_job(JOBS / file, [f"train.seed={seed}"]).spec
        outcomes.append(_compress(make_trained(job, float(job.train.epochs or 1)), place / f"{file}-{seed}"))
    lost = [-100 * each.checked["accuracy_delta"] for each in outcomes]
    least = min(each.checked["size_ratio"] for each in outcomes)
    rows = [
        (f"{what}: x smaller, least of {len(SEEDS)} seeds", f"{least:.2f}"),
        (f"{what}: points of accuracy lost, mean (each)", f"{_mean(lost):.2f} ({', '.join(f'{x:.2f}' for x in lost)})"),
        (f"{what}: seconds to compress and verify, mean", f"{_mean(each.seconds for each in outcomes):.0f}"),
    ]
    return rows + ([row for each in outcomes[:1] for row in _speed_rows(what, each)] if speed else [])


def _resnet18(place: Path) -> list[tuple[str, str]]:
    trained = make_trained(_job(RESNET18, IMAGES, [EXPORT, INT8]), epochs=2)
    whole = _compress(trained, place / "whole")
    steps = [PRUNE, {"use": "finetune", "epochs": 2, "distill": {}}, EXPORT, INT8]
    half = _compress(replace(trained, job=_job(RESNET18, IMAGES, steps)), place / "half")
    return [*_all_rows("ResNet-18, int8", whole), *_all_rows("ResNet-18, pruned half, int8", half)]


def _text(place: Path) -> list[tuple[str, str]]:
    data = {"use": "text", "corpus": "python", "seq_len": 64, "max_bytes": 600_000}
    trained = make_trained(_job(SMALL, data, [EXPORT, DYNAMIC]), epochs=2)
    rows = []
    for what, step in {"int8": DYNAMIC, "int4": INT4, "int4 trained on its integers": INT4_TRAINED}.items():
        compress_section = {"control": "qat" in step}
        outcome = _compress(
            replace(trained, job=_job(SMALL, data, [EXPORT, step], **compress_section)), place / what, timed=False
        )
        text = f"{outcome.checked['metrics']['loss']:.4f} ({outcome.checked['loss_delta']:+.4f})"
        if outcome.control:
            text += f", {outcome.checked['metrics']['loss'] - outcome.control['test/loss']:+.4f} from its control"
        rows += [
            (f"byte-level language model, {what}: x smaller", f"{outcome.checked['size_ratio']:.2f}"),
            (f"byte-level language model, {what}: loss, nats a byte", text),
        ]
    return rows


def _openvino(place: Path) -> list[tuple[str, str]]:
    data = {"use": "text", "corpus": "python", "seq_len": 64, "max_bytes": 600_000}
    return openvino_rows(make_trained(_job(MEDIUM, data, [OPENVINO]), epochs=1), place)


def openvino_rows(trained: Trained, place: Path) -> list[tuple[str, str]]:
    """Return what OpenVINO's files are of a language model, 4 and 8 bits."""
    rows = []
    for what, step in {"int8": INT8, "int8 weights": INT8_WEIGHT, "int4 weights": INT4}.items():
        section = trained.job.compress.model_copy(update={"steps": _steps(OPENVINO, step)})
        job = trained.job.model_copy(update={"compress": section})
        outcome = _compress(replace(trained, job=job), place / what)
        name = f"language model of 9M on real text, OpenVINO {what}"
        text = f"{outcome.checked['metrics']['loss']:.4f} ({outcome.checked['loss_delta']:+.4f})"
        rows += [*_all_rows(name, outcome), (f"{name}: loss, nats a byte", text)]
    return rows


def _steps(*steps: dict[str, Any]) -> tuple[Use, ...]:
    return tuple(Use.model_validate(step) for step in steps)


def _speed(place: Path) -> list[tuple[str, str]]:
    data = {"use": "text", "corpus": "python", "seq_len": 64, "max_bytes": 60_000}
    outcome = _compress(make_trained(_job(LARGE, data, [EXPORT, DYNAMIC]), epochs=0.2), place / "speed")
    return _all_rows("language model of 19M, int8, 64 tokens", outcome)


def _formats(place: Path) -> list[tuple[str, str]]:
    """The network of jobs/compress_digits.yaml, pruned by half and taught briefly, in every format that can be made."""
    job = load_job(JOBS / "compress_digits.yaml").spec
    trained = make_trained(job, float(job.train.epochs or 1))
    before = [PRUNE, {"use": "finetune", "epochs": 5, "distill": {"temperature": 4}}]
    rows = []
    for name, found in FORMATS.items():
        if not found.writer or missing(name, "") or missing(name, "", integers=True):
            continue
        for steps in [[], [INT8]] if "int8-static" in found.schemes else [[]]:
            section = load_spec(_with_steps(job, [*before, {"use": "export", "format": name}, *steps])).compress
            small = replace(trained, job=job.model_copy(update={"compress": section}))
            what = f"digits ResNet, half, {name}{', int8' if steps else ''}"
            rows += _all_rows(what, _compress(small, place / what.replace(" ", "-")))
    return rows


def _gpu(place: Path) -> list[tuple[str, str]]:
    """What a GPU makes of float8 and of two of every four weights, on a language model of 50M weights."""
    import torch

    if not torch.cuda.is_available():
        return [("float8 and 2:4 on a GPU", "no figure: torch sees no NVIDIA GPU here")]
    data = {"use": "text", "corpus": "python", "seq_len": 64, "max_bytes": 300_000}
    program, zeros = {"use": "export", "format": "program"}, {"use": "prune", "kind": "2:4"}
    trained = make_trained(_job(WIDE, data, [program]), epochs=0.5)
    rows = []
    for scheme, before in {"float8": [], "2:4": [zeros, {"use": "finetune", "epochs": 0.2}]}.items():
        steps = [*before, program, {"use": "quantise", "scheme": scheme, "target": "cuda"}]
        outcome = _compress(replace(trained, job=_job(WIDE, data, steps)), place / scheme.replace(":", "-"))
        rows += _all_rows(f"language model of 50M, {scheme} on {torch.cuda.get_device_name()}", outcome)
    return rows


def _with_steps(job: JobSpec, steps: list[dict[str, Any]]) -> dict[str, Any]:
    page = job.model_dump(mode="json", include={"name", "model", "data", "train", "optim"})
    return page | {"compress": {"steps": steps, "measure": {"batch": [1, 32], "threads": [1], "rounds": 24}}}


_PARTS = {
    "digits": _digits,
    "archive": _archive,
    "resnet18": _resnet18,
    "text": _text,
    "speed": _speed,
    "openvino": _openvino,
    "formats": _formats,
    "gpu": _gpu,
}


def _job(model: Mapping[str, Any], data: Mapping[str, Any], steps: list[dict[str, Any]], **section: Any) -> JobSpec:
    return load_spec(
        {
            "name": "bench",
            "model": dict(model),
            "data": dict(data),
            "optim": {"lr": 1e-3},
            "train": {"epochs": 1, "batch_size": 32},
            "cluster": {"gpus_per_worker": 0},
            "compress": {"steps": steps, "measure": {"batch": [1, 32], "threads": [1], "rounds": 12}, **section},
        }
    )


def _compress(trained: Trained, folder: Path, *, timed: bool = True) -> Outcome:
    outcome = compress(trained, folder, timed=timed)
    if not outcome.ok:
        raise SystemExit(f"{folder.name}: {outcome.error}")
    return outcome


def _all_rows(what: str, outcome: Outcome) -> list[tuple[str, str]]:
    return [(f"{what}: x smaller", f"{outcome.checked['size_ratio']:.2f}"), *_speed_rows(what, outcome)]


def _speed_rows(what: str, outcome: Outcome) -> list[tuple[str, str]]:
    rows = []
    for row in (row for row in outcome.timing if row["threads"] == 1):
        text = f"{row['speedup']:.2f} ({row['speedup_runtime']:.2f})" if row["verdict"] == "ok" else row["verdict"]
        if "speedup_dense" in row:
            text += f", {row['speedup_dense']:.2f} x itself with its zeros multiplied"
        rows.append((f"{what}: x faster than fp32 eager (same runtime), batch {row['batch']}", text))
    old, new = outcome.processes["eager"], outcome.processes["candidate"]
    memory, ready = new["peak_rss_bytes"] / old["peak_rss_bytes"], new["ready_s"] / old["ready_s"]
    return [*rows, (f"{what}: process memory, time to ready, over fp32 eager", f"{memory:.2f}, {ready:.2f}")]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


if __name__ == "__main__":
    for what, figure in run(sys.argv[1:]):
        print(f"{what}  {figure}")
