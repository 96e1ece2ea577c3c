"""Files around an artifact: the model before as reference, held-out samples, the page. Called by the pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.archive import read_header
from orchestrator.compress.base import MODULE, Context, State
from orchestrator.compress.formats import exported_as
from orchestrator.compress.gpu import gpu_facts
from orchestrator.compress.manifest import CHECK_FILE, EVAL_FILE, Link, Page, entry_of, write_page
from orchestrator.compress.measures import quality
from orchestrator.compress.processor import processor
from orchestrator.compress.runtimes.base import REFERENCE, open_folder, reference_files, runtime_of
from orchestrator.errors import ExportError, OrchestratorError
from orchestrator.export.manifest import kept_job
from orchestrator.export.score import cast_inputs, held_out_inputs
from orchestrator.spec.digest import job_digest
from orchestrator.train.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError, build_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.compress.pipeline import Trained
    from orchestrator.plan.plan import Plan
    from orchestrator.spec.job import JobSpec

HELD_OUT = 256
WEIGHTS_FILE = "model.safetensors"
_PACKAGES = ("torch", "torch-pruning", "numpy")


def as_function(state: State) -> Callable[[Tensor], Tensor]:
    """Return a state as a function of a batch."""
    import torch

    if state.kind == MODULE:
        model = state.model

        def forward(inputs_B: Tensor) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = model(inputs_B)
            return outputs

        return forward
    run = open_folder(state.file().parent, state.format, state.files, target=state.target)
    return lambda inputs_B: torch.from_numpy(run(inputs_B.contiguous().numpy()))


def size_of(state: State) -> int:
    """Return the bytes of a state's files; a model in memory is written as safetensors to be weighed."""
    if state.kind != MODULE:
        return sum(((state.folder or Path()) / name).stat().st_size for name in state.files)
    return len(safetensors_bytes(state.model))


def safetensors_bytes(model: nn.Module) -> bytes:
    """Return the safetensors file of a model's weights, tensors that share memory stored once."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        tensors[name] = tensor.contiguous()
    return save(tensors)


def write_reference(trained: Trained, context: Context, folder: Path) -> tuple[str, ...]:
    """Write the model as it was, as safetensors and for the target's runtime; return notes on what could not be."""
    from safetensors.torch import save_file

    from orchestrator.compress.export import write

    place, format = folder / REFERENCE, exported_as(trained.job)
    place.mkdir()
    tensors = {name: tensor.clone().contiguous() for name, tensor in trained.model.state_dict().items()}
    save_file(tensors, str(place / WEIGHTS_FILE))
    try:
        write(format, trained.model, context, place)
    except OrchestratorError as error:
        for name in runtime_of(format).files:
            (place / name).unlink(missing_ok=True)
        why = f"the model as it was has no {format} form ({error.message})"
        return (f"no comparison within the runtime, with eager PyTorch alone: {why}",)
    return ()


def write_artifact(trained: Trained, state: State, lineage: tuple[Link, ...], folder: Path) -> Page:
    """Copy the last state's files into `folder/artifact` and write its page, not yet checked."""
    if state.kind == MODULE or state.folder is None:
        raise ExportError("the last step left a model in memory, not a file", hint="add `- use: export`")
    place = folder / "artifact"
    place.mkdir()
    for name in state.files:
        shutil.copyfile(state.folder / name, place / name)
    inputs, outputs = _write_samples(trained, state, folder)
    beside = [CHECK_FILE, EVAL_FILE, f"{REFERENCE}/{WEIGHTS_FILE}"]
    beside += [name for name in reference_files(state.format) if (folder / name).is_file() and name not in beside]
    section = trained.job.compress
    page = Page(
        format=state.format,
        scheme=state.scheme,
        needed={name: entry_of(place / name) for name in state.files},
        beside={name: entry_of(folder / name) for name in beside},
        inputs=_signature(inputs) | {"transform": dict(trained.data.transform)},
        outputs=_signature(outputs),
        target_kind=trained.plan.data.target_kind,
        split=trained.split,
        baseline_bytes=len(safetensors_bytes(trained.model)),
        lineage=lineage,
        job=kept_job(trained.named(), "compress"),
        job_digest=job_digest(trained.named()),
        checkpoint=trained.checkpoint,
        versions=_versions(state.format),
        machine=processor() | (gpu_facts(state.scheme) if state.target == "cuda" else {}),
        measure=section.measure.model_dump(mode="json"),
        limits=section.limits.model_dump(mode="json"),
        restored=_restored(state),
        weights={str(bits): count for bits, count in state.weights.items()},
        loss=loss_of(trained.job, trained.plan),
        target=state.target,
        eager={} if any(name in beside for name in reference_files(state.format)) else _eager_quality(trained),
    )
    write_page(place, page)
    return page


def loss_of(job: JobSpec, plan: Plan) -> dict[str, Any]:
    """Return a job's loss as a page has it: one that the check cannot compute in numpy is `custom`."""
    loss = build_loss(job, plan)
    for name, kind in (("cross_entropy", CrossEntropy), ("bce", BinaryCrossEntropy), ("mse", MeanSquaredError)):
        if type(loss) is kind:  # a subclass is another loss
            return {"use": name, "options": asdict(loss.config) if isinstance(loss, CrossEntropy) else {}}
    return {"use": plan.loss, "custom": True}


def _restored(state: State) -> dict[str, Any]:
    """Return digest and size of the graph that an archive was made of."""
    if state.format != "pack":
        return {}
    header = read_header(state.file().read_bytes())
    return {"sha256": header["sha256"], "num_bytes": header["num_bytes"]}


def _eager_quality(trained: Trained) -> dict[str, float]:
    """Return what the check measures, of the model as it was, over the whole final split."""
    import torch

    split, size = trained.data.splits[trained.split], trained.plan.batch.eval_batch
    inputs, targets = split.batch(torch.arange(len(split)))
    run = as_function(State(MODULE, trained.model))
    outputs = torch.cat([run(part) for part in torch.split(cast_inputs(inputs, trained.dtype), size)])
    kind, loss = trained.plan.data.target_kind, loss_of(trained.job, trained.plan)
    return quality(outputs.numpy(), targets.numpy(), kind, loss)


def _write_samples(trained: Trained, state: State, folder: Path) -> tuple[Tensor, Tensor]:
    import numpy as np
    import torch

    split = trained.data.splits[trained.split]
    held_out = held_out_inputs(trained.data, trained.split, HELD_OUT, trained.dtype)
    with torch.no_grad():
        outputs = state.model(held_out)
    np.savez(folder / CHECK_FILE, inputs=held_out.numpy(), outputs=outputs.numpy())
    inputs, targets = split.batch(torch.arange(len(split)))
    np.savez(
        folder / EVAL_FILE, inputs=cast_inputs(inputs, trained.dtype).contiguous().numpy(), targets=targets.numpy()
    )
    return held_out, outputs


def _signature(tensor: Tensor) -> dict[str, Any]:
    return {"shape": [None, *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}


def _versions(format: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in (*_PACKAGES, *runtime_of(format).packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
