"""Is this file what its page says? A process of its own, which can import the runtime and numpy and nothing else.

`python -m orchestrator.compress.check FOLDER` prints one JSON object. Called by `verify.check_artifact`. It refuses to
import torch and models: an artifact that needs its training code fails here as it would fail where it is deployed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.graph import PLAIN_DOMAINS, GraphFacts, read_graph
from orchestrator.compress.manifest import CHECK_FILE, EVAL_FILE, Page, check_files, read_page
from orchestrator.compress.measures import fidelity, quality
from orchestrator.compress.runtime import graph_bytes, open_onnx
from orchestrator.errors import ExportError, OrchestratorError

if TYPE_CHECKING:
    from orchestrator.compress.runtime import Array, Run

REFUSED = ("torch", "torchvision", "ray", "mlflow", "onnx", "orchestrator.models", "orchestrator.train")
REFERENCE = Path("reference") / "model.onnx"
FORMATS = ("onnx", "pack")
MIN_SMALLER = 1.02
_MIN_COVERAGE = 0.95
_FULL = 32
_LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"relative": 1e-4},
    "int8-static": {"sqnr_db": 15.0, "agreement": 0.95},
    "int8-dynamic": {"sqnr_db": 15.0, "agreement": 0.9},
    "int8-weight": {"sqnr_db": 20.0, "agreement": 0.95},
    "int4-weight": {"sqnr_db": 5.0, "agreement": 0.7},
    "mixed": {"sqnr_db": 5.0, "agreement": 0.7},
}


def check(folder: Path) -> dict[str, Any]:
    """Return what was measured of the artifact in `folder`. Raises ExportError naming the first thing that is wrong."""
    page = read_page(folder)
    found: dict[str, Any] = {"size_bytes": check_files(folder, page)}
    found["size_ratio"] = page.baseline_bytes / found["size_bytes"]
    (name, entry), *others = page.needed.items()
    if others or page.format not in FORMATS:
        raise ExportError(f"an artifact of format {page.format} with {len(page.needed)} files is not known here")
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        run = open_onnx(folder / name, optimised=optimised, sha256=entry.sha256)
        content = graph_bytes(folder / name, entry.sha256)
        found |= _restored(content, page) | _graph_facts(folder / name, content, optimised, page)
    found["fidelity"] = _fidelity(folder, run, page)
    found |= _quality(folder, run, page)
    _require_smaller(found)
    _require_limits(found, page)
    return found


def _restored(content: bytes, page: Page) -> dict[str, Any]:
    """Return the size of what an archive restores, which must be the graph it was made of, bit for bit."""
    if page.format != "pack":
        return {}
    if hashlib.sha256(content).hexdigest() != page.restored.get("sha256"):
        raise ExportError("the archive restores another graph than the one it was made of")
    return {"restored_bytes": len(content)}


def _graph_facts(path: Path, content: bytes, optimised: Path, page: Page) -> dict[str, Any]:
    facts, fused = read_graph(content), read_graph(optimised.read_bytes())
    if facts.external:
        raise ExportError(f"{path.name} keeps weights in files beside it, which the page does not count")
    if facts.dead:
        raise ExportError(
            f"{path.name} carries weights that no operator reads: {', '.join(facts.dead[:3])}",
            hint="a converter has left the fp32 weights behind: they must be taken out",
        )
    foreign = sorted(facts.domains - set(PLAIN_DOMAINS))
    if foreign:
        raise ExportError(f"{path.name} uses operators of {', '.join(foreign)}, which no runtime brings along")
    if page.scheme == "mixed":
        _require_bits(facts, page)
    elif page.scheme != "fp32":
        _require_integers(facts, fused, page.scheme)
    return {
        "coverage": facts.coverage,
        "weights_by_bits": {str(bits): count for bits, count in sorted(facts.by_bits.items())},
        "integer_operators": fused.integer_operators,
        "operators": dict(fused.operators.most_common()),
    }


def _require_bits(facts: GraphFacts, page: Page) -> None:
    """Require that the file keeps as many numbers in few bits as its layers claim; zero points and padding come on top.

    Raises ExportError naming the bits that are missing.
    """
    for bits, claimed in page.weights.items():
        there = facts.by_bits[int(bits)]
        if int(bits) < _FULL and there < claimed:
            raise ExportError(
                f"mixed precision in name only: {claimed:,} weights are to be in {bits} bits, the file has {there:,}",
                hint="the graph holds them in other types than the report says",
            )


def _require_integers(facts: GraphFacts, fused: GraphFacts, scheme: str) -> None:
    if fused.integer_operators == 0:
        raise ExportError(
            f"{scheme} in name only: the runtime runs no operator on integers",
            hint="the graph holds quantised weights that are turned back into floats before every use",
        )
    if facts.coverage < _MIN_COVERAGE:
        raise ExportError(
            f"{scheme} reached {facts.coverage:.1%} of the weights, {_MIN_COVERAGE:.0%} are needed to call it that",
            hint="layers of other kinds stayed in floats",
        )


def _fidelity(folder: Path, run: Run, page: Page) -> dict[str, float]:
    arrays = _arrays(folder.parent / CHECK_FILE)
    found = fidelity(run(arrays["inputs"]), arrays["outputs"], page.target_kind)
    limits = _LIMITS.get(page.scheme, {})
    for name, limit in limits.items():
        value = found.get(name)
        if value is None:
            continue
        good = value <= limit if name == "relative" else value >= limit
        if not good:
            sign = "at most" if name == "relative" else "at least"
            raise ExportError(
                f"the file answers otherwise than the model it was made of: {name} {value:.4g} over "
                f"{len(arrays['inputs'])} held-out samples ({sign} {limit:g})",
                hint="it is another model's file, or its calibration samples are not like the data",
            )
    return found


def _quality(folder: Path, run: Run, page: Page) -> dict[str, Any]:
    """Evaluate the file, and the model before it in the same runtime, over the whole final split."""
    arrays = _arrays(folder.parent / EVAL_FILE)
    found: dict[str, Any] = {"samples": len(arrays["targets"]), "split": page.split}
    found["metrics"] = quality(_answers(run, arrays["inputs"]), arrays["targets"], page.target_kind)
    before = folder.parent / REFERENCE
    if str(REFERENCE) in page.beside:
        outputs = _answers(open_onnx(before, sha256=page.beside[str(REFERENCE)].sha256), arrays["inputs"])
        found["baseline"] = quality(outputs, arrays["targets"], page.target_kind)
        for name, value in found["metrics"].items():
            found[f"{name}_delta"] = value - found["baseline"][name]
    return found


def _arrays(path: Path) -> dict[str, Array]:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _answers(run: Run, inputs: Array, rows: int = 256) -> Array:
    import numpy as np

    return np.concatenate([run(inputs[at : at + rows]) for at in range(0, len(inputs), rows)])


def _require_smaller(found: dict[str, Any]) -> None:
    if found["size_ratio"] < MIN_SMALLER:
        raise ExportError(
            f"nothing was compressed: all files needed take {found['size_bytes']:,} bytes, "
            f"{found['size_ratio']:.2f} x smaller than the fp32 weights",
            hint="masks alone leave the zeros in the file: prune channels, quantise, or pack",
        )


def _require_limits(found: dict[str, Any], page: Page) -> None:
    drop, ratio = page.limits.get("accuracy_drop"), page.limits.get("size_ratio")
    lost = -found.get("accuracy_delta", 0.0)
    if drop is not None and lost > drop + 1e-9:
        raise ExportError(f"accuracy fell by {lost:.4f}, compress.limits.accuracy_drop allows {drop:g}")
    if ratio is not None and found["size_ratio"] < ratio:
        raise ExportError(f"{found['size_ratio']:.2f} x smaller, compress.limits.size_ratio asks for {ratio:g}")


def main(arguments: list[str]) -> int:
    """Check the folder given; print what was measured, or why it fails."""
    for name in REFUSED:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        answer: dict[str, Any] = check(Path(arguments[0]))
    except OrchestratorError as error:
        answer = {"error": error.message, "hint": error.hint}
    except Exception as error:  # a damaged or hostile file may raise anything; it is not good, whatever it was
        answer = {"error": f"{type(error).__name__}: {error}", "hint": ""}
    answer["imported_torch"] = sys.modules.get("torch") is not None
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
