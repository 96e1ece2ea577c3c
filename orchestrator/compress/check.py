"""Is this file what its page says? A process of its own, which can import the runtime and numpy and nothing else.

`python -m orchestrator.compress.check FOLDER` prints one JSON object. Called by `verify.check_artifact`. It refuses to
import models and whatever the format's runtime does without (torch, for most): an artifact that needs its training code
fails here as it would fail where it is deployed. A format that says it needs the model's code gets that, and no more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.manifest import CHECK_FILE, EVAL_FILE, Page, check_files, read_page
from orchestrator.compress.measures import fidelity, quality
from orchestrator.compress.runtimes.base import open_reference, read_files, runtime_of
from orchestrator.errors import ExportError, OrchestratorError

if TYPE_CHECKING:
    from orchestrator.compress.runtimes.base import Array, Run, Runtime

ALWAYS_REFUSED = ("ray", "mlflow", "orchestrator.models", "orchestrator.train")
MIN_SMALLER = 1.02
_LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"relative": 1e-4},
    "int8-static": {"sqnr_db": 15.0, "agreement": 0.95},
    "int8-dynamic": {"sqnr_db": 15.0, "agreement": 0.9},
    "float8": {"sqnr_db": 20.0, "agreement": 0.7},  # errors grow with the number: the best scores have the largest
    "2:4": {"sqnr_db": 30.0, "agreement": 0.95},
    "int8-weight": {"sqnr_db": 20.0, "agreement": 0.95},
    "int4-weight": {"sqnr_db": 5.0, "agreement": 0.7},
    "mixed": {"sqnr_db": 5.0, "agreement": 0.7},
}


def check(folder: Path, page: Page, runtime: Runtime) -> dict[str, Any]:
    """Return what was measured of the artifact in `folder`. Raises ExportError naming the first thing that is wrong."""
    found: dict[str, Any] = {"size_bytes": check_files(folder, page)}
    if page.scheme not in _LIMITS:
        raise ExportError(
            f"how far a file of scheme {page.scheme} may answer otherwise than its model is not known here",
            hint=f"schemes: {', '.join(_LIMITS)}",
        )
    if set(page.needed) != set(runtime.files):
        raise ExportError(f"an artifact of format {page.format} is {', '.join(runtime.files)}, the page names others")
    found["size_ratio"] = page.baseline_bytes / found["size_bytes"]
    contents = read_files(folder, page.needed)
    run = runtime.open(contents)
    found |= runtime.inspect(contents, page)
    found["fidelity"] = _fidelity(folder, run, page)
    found |= _quality(folder, run, page)
    _require_smaller(found)
    _require_limits(found, page)
    return found


def _fidelity(folder: Path, run: Run, page: Page) -> dict[str, float]:
    arrays = _arrays(folder.parent / CHECK_FILE)
    found = fidelity(run(arrays["inputs"]), arrays["outputs"], page.target_kind)
    for name, limit in _LIMITS[page.scheme].items():
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
    """Evaluate the file, and the model before it in the same runtime (else as its page says), over the final split."""
    arrays = _arrays(folder.parent / EVAL_FILE)
    found: dict[str, Any] = {"samples": len(arrays["targets"]), "split": page.split}
    found["metrics"] = quality(_answers(run, arrays["inputs"]), arrays["targets"], page.target_kind, page.loss)
    if page.loss.get("custom"):
        found["left_out"] = f"no loss of the file: {page.loss['use']} is code of the job, which is not run to judge it"
    before = open_reference(folder, page)
    if before is not None:
        outputs = _answers(before, arrays["inputs"])
        found["baseline"] = quality(outputs, arrays["targets"], page.target_kind, page.loss)
    elif page.eager:
        found["baseline"] = dict(page.eager)
    for name, value in found["metrics"].items():
        if name in found.get("baseline", {}):
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
    if drop is not None and "accuracy_delta" not in found:
        missing = (
            "of the model as it was" if "accuracy" in found["metrics"] else f"for targets of kind {page.target_kind}"
        )
        raise ExportError(
            f"whether compress.limits.accuracy_drop is kept cannot be said: there is no accuracy {missing}",
            hint="remove compress.limits.accuracy_drop, or compress again",
        )
    if drop is not None and -found["accuracy_delta"] > drop + 1e-9:
        raise ExportError(
            f"accuracy fell by {-found['accuracy_delta']:.4f}, compress.limits.accuracy_drop allows {drop:g}"
        )
    if ratio is not None and found["size_ratio"] < ratio:
        raise ExportError(f"{found['size_ratio']:.2f} x smaller, compress.limits.size_ratio asks for {ratio:g}")


def main(arguments: list[str]) -> int:
    """Check the folder given; print what was measured, or why it fails."""
    try:
        folder = Path(arguments[0])
        page = read_page(folder)
        runtime = runtime_of(page.format, page.target)
        for name in {*ALWAYS_REFUSED, *runtime.refused} - set(runtime.code):
            sys.modules[name] = None  # type: ignore[assignment]
        answer: dict[str, Any] = check(folder, page, runtime)
    except OrchestratorError as error:
        answer = {"error": error.message, "hint": error.hint}
    except Exception as error:  # a damaged or hostile file may raise anything; it is not good, whatever it was
        answer = {"error": f"{type(error).__name__}: {error}", "hint": ""}
    answer["imported_torch"] = sys.modules.get("torch") is not None
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
