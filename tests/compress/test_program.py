"""Format `program`: runs in torch without the model's code; what a program can lie about fails the check."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.verify import _ask
from orchestrator.compress.writers.program import lean
from orchestrator.errors import ExportError
from orchestrator.export.program import load_program, save_program

from .making import RESNET, check_here, lay_out, make_job, make_trained, rewrite
from .test_spec import job as job_of
from .test_spec import said

STEPS = (
    {"use": "prune", "ratio": 0.5},
    {"use": "finetune", "epochs": 1, "lr": 0.005, "distill": {}},
    {"use": "export", "format": "program"},
)
Records = dict[str, bytes]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(RESNET, STEPS))


@pytest.fixture(scope="module")
def good(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


def edit(place: Path, change: Callable[[Records], None]) -> None:
    """Change the records of an artifact's archive, and hash it anew."""
    path = place / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    change(records)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    rewrite(place)


def test_a_program_holds_in_torch_alone(good: Outcome) -> None:
    found = _ask("check", [str(good.folder / "artifact")])
    assert "error" not in found
    assert found["imported_torch"] is True
    assert found["fidelity"]["relative"] < 1e-5
    assert found["size_bytes"] == (good.folder / "artifact" / "model.pt2").stat().st_size
    assert found["size_ratio"] > 1.1  # the graph itself is half of so small a file
    assert found["operators"]["aten.conv2d.default"] > 3
    assert found["baseline"]["accuracy"] > 0.5
    assert (found["integer_operators"], found["coverage"]) == (0, 0.0)


def test_a_program_holds_no_weight_that_nothing_reads_and_no_path_of_its_source(good: Outcome) -> None:
    with zipfile.ZipFile(good.folder / "artifact" / "model.pt2") as archive:
        graph = archive.read("model/models/model.json").decode()
    assert "num_batches_tracked" not in graph
    assert ".py" not in graph


def test_the_judging_process_has_no_converter_and_no_training_code() -> None:
    from orchestrator.compress.check import ALWAYS_REFUSED
    from orchestrator.compress.runtimes.program import RUNTIME

    assert "torchao" in RUNTIME.refused
    assert "torch" not in {*ALWAYS_REFUSED, *RUNTIME.refused}


def test_weights_that_no_operator_reads_fail(trained: Trained, tmp_path: Path) -> None:
    program = torch.export.export(
        trained.model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    save_program(program, tmp_path / "model.pt2")
    place = lay_out(trained, tmp_path / "model.pt2", tmp_path / "compress", trained.model, "fp32", format="program")
    rewrite(place, baseline_bytes=10**7)
    with pytest.raises(ExportError, match=r"weights that no operator reads: .*num_batches_tracked"):
        check_here(place)
    save_program(lean(program), place / "model.pt2")
    rewrite(place, baseline_bytes=10**7)
    check_here(place)


class Named(nn.Module):
    """A model whose input has the name of something of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(input)
        return found


def test_a_model_may_call_its_input_what_it_likes(tmp_path: Path) -> None:
    model = Named().eval()
    program = lean(torch.export.export(model, (torch.rand(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},)))
    save_program(program, tmp_path / "model.pt2")
    x = torch.rand(3, 4)
    assert torch.equal(load_program(tmp_path / "model.pt2").module()(x), model(x))


def test_records_that_no_weight_names_fail(copied: Path) -> None:
    edit(copied, lambda records: records.update({"model/data/weights/weight_999": b"0" * 4096}))
    with pytest.raises(ExportError, match=r"no weight of the program names: data/weights/weight_999"):
        check_here(copied)


@pytest.mark.parametrize("target", ["torch.ops.mine.secret.default", "torch.ops.prims.add.default"])
def test_operators_that_torch_alone_does_not_run_fail(copied: Path, target: str) -> None:
    def change(records: Records) -> None:
        page: dict[str, Any] = json.loads(records["model/models/model.json"])
        nodes = page["graph_module"]["graph"]["nodes"]
        node = next(node for node in nodes if node["target"] == "torch.ops.aten.add.Tensor")
        node["target"] = target
        records["model/models/model.json"] = json.dumps(page).encode()

    edit(copied, change)
    with pytest.raises(ExportError, match=r"is refused|that torch alone does not run|cannot be loaded"):
        check_here(copied)


def test_a_pickle_in_the_archive_fails_and_does_not_run(copied: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    pickled = io.BytesIO()
    torch.save(Bomb(), pickled)
    edit(copied, lambda records: records.update({"model/data/sample_inputs/model.pt": pickled.getvalue()}))
    with pytest.raises(ExportError, match="is a pickle"):
        check_here(copied)
    assert not (tmp_path / "ran").exists()


def test_another_models_program_fails(trained: Trained, copied: Path) -> None:
    def change(records: Records) -> None:
        name = max((name for name in records if "/weights/weight_" in name), key=lambda each: len(records[each]))
        records[name] = records[name][4:] + records[name][:4]

    edit(copied, change)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        check_here(copied)


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "mixed"])
def test_integers_are_refused_when_the_job_is_read_with_the_measured_reason(scheme: str) -> None:
    budget = {"budget": {"size_ratio": 3}} if scheme == "mixed" else {}
    text = said(job_of([{"use": "export", "format": "program"}, {"use": "quantise", "scheme": scheme, **budget}]))
    assert f"program cannot be made {scheme}" in text
    assert "0.2 to 0.56 x the speed" in text
    assert f"{scheme} can be had as onnx" in text


def test_an_archive_of_a_program_is_refused() -> None:
    text = said(job_of([{"use": "export", "format": "program"}, {"use": "pack"}]))
    assert "pack writes archives of onnx graphs, and export writes program" in text
