"""Does a reloaded file give what the trained model gives? Run as `python -m orchestrator.export.verify FOLDER ...`.

A fresh process reads the folder only: manifest, files, held-out inputs, the eager model's outputs. It prints one JSON
object a folder with the measured differences; torch is imported only if a format needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import plugins
from orchestrator.errors import ExportError, OrchestratorError
from orchestrator.export.base import CHECK_FILE, ArrayLoader, Exporter, Tolerance, WeightReader, cut_batches
from orchestrator.export.manifest import Manifest, Verified, check_files, read_manifest

if TYPE_CHECKING:
    from orchestrator.export.base import Array

TIMEOUT_S = 600.0


def verify_folder(folder: Path) -> Verified:
    """Compare one export with the outputs stored beside it. Raises ExportError when it differs or is damaged.

    Sets this process's number of torch threads when the format runs in torch.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    exporter: Exporter = plugins.build("exporters", manifest.format, manifest.options)
    _compare_weights(folder, manifest, exporter)
    inputs, wanted = _read_check(folder)
    outputs = _run(exporter, folder, inputs, manifest.num_threads)
    verified = _measure(outputs, wanted)
    if not Tolerance(**manifest.tolerance).accepts(verified.max_abs_diff, verified.relative_diff):
        raise ExportError(
            f"{manifest.format} gives other outputs than the trained model: max |diff| {verified.max_abs_diff:.3g}, "
            f"relative {verified.relative_diff:.3g} over {verified.samples} samples (allowed: {_limits(manifest)})",
            hint="the file is not kept; its format cannot stand in for this model",
        )
    return verified


def _limits(manifest: Manifest) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in manifest.tolerance.items() if value is not None)


def _compare_weights(folder: Path, manifest: Manifest, exporter: Exporter) -> None:
    if not isinstance(exporter, WeightReader):
        return
    from orchestrator.export.weights import digest_weights

    if digest_weights(exporter.read_weights(folder)) != manifest.weights_digest:
        raise ExportError(f"{folder}: the weights in the file are not those of checkpoint {manifest.checkpoint}")


def _read_check(folder: Path) -> tuple[Array, Array]:
    from safetensors.numpy import load_file

    tensors = load_file(str(folder / CHECK_FILE))
    return tensors["inputs"], tensors["outputs"]


def _run(exporter: Exporter, folder: Path, inputs: Array, num_threads: int) -> Array:
    """Return the outputs for all inputs, in the batch sizes that the eager model was given."""
    import numpy as np

    if isinstance(exporter, ArrayLoader):
        run_arrays = exporter.load_arrays(folder)
        return np.concatenate([run_arrays(inputs[cut]) for cut in cut_batches(len(inputs))])
    import torch

    torch.set_num_threads(num_threads)
    run = exporter.load(folder)
    parts = [run(torch.from_numpy(inputs[cut])).numpy() for cut in cut_batches(len(inputs))]
    return np.concatenate(parts)


def _measure(outputs: Array, wanted: Array) -> Verified:
    import numpy as np

    if outputs.shape != wanted.shape:
        raise ExportError(f"outputs have shape {outputs.shape}, the trained model's {wanted.shape}")
    reference = wanted.astype(np.float64)
    difference = outputs.astype(np.float64) - reference
    norm = float(np.linalg.norm(reference))
    sizes = tuple(cut.stop - cut.start for cut in cut_batches(len(wanted)))
    relative = float(np.linalg.norm(difference)) / max(norm, 1e-30)
    return Verified(float(np.abs(difference).max(initial=0.0)), relative, len(wanted), sizes)


class Verification:
    """A fresh process that verifies folders while its starter goes on; ask for `results` when they are needed.

    With `warm` it imports torch at once, before it is given anything, so that its start overlaps the export.
    """

    def __init__(self, *, warm: bool = False) -> None:
        """Start it; it finds the same modules as this process."""
        paths = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-m", "orchestrator.export.verify", "--sys-path", paths, "-"]
        command += ["--warm"] if warm else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._folders: list[Path] = []

    def add(self, folders: Iterable[Path]) -> None:
        """Let it verify these too; returns at once."""
        pipe = self._process.stdin
        for folder in folders:
            self._folders.append(folder)
            try:
                if pipe is not None:
                    pipe.write(f"{folder}\n")
                    pipe.flush()
            except BrokenPipeError:  # it died: `results` says why
                return

    def results(self, timeout_s: float = TIMEOUT_S) -> dict[Path, Verified | ExportError]:
        """Wait; return for each folder what was measured, or why the export is not good. The process ends."""
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.close()
            return dict.fromkeys(self._folders, ExportError(f"verification did not end within {timeout_s:g} s"))
        answers: dict[str, Any] = {}
        for line in out.splitlines():
            answers |= _parse(line)
        why = err.strip().splitlines()[-1] if err.strip() else f"exit code {self._process.returncode}"
        lost = {"error": f"the verifying process failed: {why}", "hint": ""}
        return {folder: _from_answer(answers.get(str(folder), lost)) for folder in self._folders}

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()


def _parse(line: str) -> dict[str, Any]:
    # A library may print to standard output; only our own lines are JSON objects of objects.
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()) else {}


def _from_answer(answer: Mapping[str, Any]) -> Verified | ExportError:
    if "error" in answer:
        return ExportError(answer["error"], hint=answer["hint"])
    return Verified.from_json(answer)


def _answer(folder: Path) -> dict[str, Any]:
    try:
        return asdict(verify_folder(folder))
    except OrchestratorError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # a damaged file or a user's plug-in may raise anything; the other folders still count
        return {"error": f"{folder.name}: {type(error).__name__}: {error}", "hint": ""}


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify the folders named on the command line (`-`: one a line on standard input); return 1 when any failed."""
    parser = argparse.ArgumentParser(prog="orchestrator.export.verify", description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--sys-path", default="", help="further folders to import modules from")
    parser.add_argument("--warm", action="store_true", help="import torch before the first folder is known")
    options = parser.parse_args(arguments)
    sys.path += [entry for entry in options.sys_path.split(os.pathsep) if entry and entry not in sys.path]
    if options.warm:
        import_module("torch._dynamo")  # what torch.export.load imports
    failed = False
    for folder in (line.rstrip("\n") for line in sys.stdin) if options.folders == ["-"] else options.folders:
        answer = _answer(Path(folder))
        failed |= "error" in answer
        sys.stdout.write(json.dumps({folder: answer}) + "\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
